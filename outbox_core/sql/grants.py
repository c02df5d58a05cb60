"""The least that each database role needs on PostgreSQL, as GRANT statements.

    publisher   INSERT, and not even the columns that say how often a message was tried; reads nothing
    worker      claims, settles and buries; cannot publish, and cannot change a message
    operator    looks, redrives, purges, pauses, releases; cannot change a message
    receiver    records in the inbox what came from elsewhere; cannot make it forget

Each role is one that is there already; nothing is taken away from it. What a handler's own tables need is the user's to say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outbox_core.errors import InvalidName
from outbox_core.schema import ARCHIVE, DEAD_LETTERS, MESSAGE_COLUMNS, OUTBOX, Tables

PUBLISHED = (*(name for name in MESSAGE_COLUMNS if name != "created_at"), "next_attempt_at")
STATE = tuple(name for name in OUTBOX.names if name not in ("id", *MESSAGE_COLUMNS))

MAX_ROLE = 63  # bytes, PostgreSQL's NAMEDATALEN - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Who does what; None: nobody is granted that."""

    publisher: str | None = None
    worker: str | None = None
    operator: str | None = None
    receiver: str | None = None


def grant_statements(tables: Tables, roles: Roles) -> Sequence[str]:
    """GRANTs for the roles that are named. Raises `InvalidName` for a name that no role can have."""
    named = [
        (roles.publisher, _publisher(tables)),
        (roles.worker, _worker(tables)),
        (roles.operator, _operator(tables)),
        (roles.receiver, _receiver(tables)),
    ]
    return [
        f"GRANT {privilege} TO {quoted_role(role)}"
        for role, privileges in named
        if role is not None
        for privilege in [*_usage(tables), *privileges]
    ]


def quoted_role(role: str) -> str:
    """*role* as an identifier. Roles may have any name, hyphens and capitals too, so it is quoted instead of refused."""
    if not role or "\0" in role or len(role.encode()) > MAX_ROLE:
        raise InvalidName(f"a role's name must be 1 to {MAX_ROLE} bytes without NUL, got {role!r}")
    return '"{}"'.format(role.replace('"', '""'))


def _usage(tables: Tables) -> Iterable[str]:
    if tables.schema is not None:
        yield f'USAGE ON SCHEMA "{tables.schema}"'


def _publisher(tables: Tables) -> Iterable[str]:
    yield f"INSERT ({_list(PUBLISHED)}) ON {tables.sql(tables.outbox)}"


def _worker(tables: Tables) -> Iterable[str]:
    outbox = tables.sql(tables.outbox)
    yield f"SELECT, DELETE ON {outbox}"
    yield f"UPDATE ({_list(STATE)}) ON {outbox}"
    if tables.dead_letters is not None:
        yield f"INSERT ({_list(_written(DEAD_LETTERS.names, 'failed_at'))}) ON {tables.sql(tables.dead_letters)}"
    if tables.archive is not None:
        yield f"INSERT ({_list(_written(ARCHIVE.names, 'archived_at'))}) ON {tables.sql(tables.archive)}"
    if tables.queues is not None:
        yield f"SELECT ON {tables.sql(tables.queues)}"


# FOR UPDATE asks for UPDATE on a column, whichever; what is parked in the outbox table is redriven by changing it. A message
# that is redriven stays as old as it is. A release moves what halts a key to the dead letters, where there are any.
def _operator(tables: Tables) -> Iterable[str]:
    outbox = tables.sql(tables.outbox)
    yield f"SELECT, INSERT ({_list((*PUBLISHED, 'created_at'))}), UPDATE ({_list(('timer_id', *STATE))}) ON {outbox}"
    if tables.dead_letters is not None:
        yield f"DELETE ON {outbox}"
        moved = _list(_written(DEAD_LETTERS.names, "worker"))
        yield f"SELECT, INSERT ({moved}), DELETE, UPDATE (worker) ON {tables.sql(tables.dead_letters)}"
    if tables.queues is not None:
        yield f"SELECT, INSERT (queue, paused_at), UPDATE (paused_at) ON {tables.sql(tables.queues)}"
    if tables.inbox is not None:
        yield f"SELECT, DELETE, UPDATE (received_at) ON {tables.sql(tables.inbox)}"


# What ON CONFLICT looks for and RETURNING tells has to be readable.
def _receiver(tables: Tables) -> Iterable[str]:
    inbox = tables.need("a receiver", "inbox")
    yield f"INSERT (consumer, message_id), SELECT (id, consumer, message_id) ON {inbox}"


def _written(names: Iterable[str], *by_default: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in ("id", *by_default))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
