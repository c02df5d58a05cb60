"""`outbox ddl`: the tables, or each role's grants, as SQL for whoever may run it. Nothing is connected."""

from argparse import ArgumentParser, Namespace

from outbox_core.cli.exits import Refused
from outbox_core.schema import Tables
from outbox_core.sql.ddl import create_statements
from outbox_core.sql.grants import Roles, grant_statements

HELP = (
    "Print the CREATE statements of the tables, or with --grants what each database role needs. "
    "By default the tables are those of make_outbox_tables: messages, dead letters, and queue controls."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dialect", choices=("postgresql", "sqlite"), default="postgresql", help="default: postgresql")
    parser.add_argument("--table", default="outbox", metavar="NAME", help="the outbox table (default: outbox)")
    parser.add_argument("--schema", metavar="NAME", help="its schema, which has to be there already")
    parser.add_argument(
        "--dead-letters", metavar="NAME", help="the dead-letter table (default: named after the outbox table)"
    )
    parser.add_argument("--no-dead-letters", action="store_true", help="dead letters are parked in the outbox table")
    parser.add_argument("--no-queues", action="store_true", help="queues cannot be paused")
    parser.add_argument("--archive", action="store_true", help="an archive of handled messages, too")
    parser.add_argument("--inbox", action="store_true", help="an inbox for messages from elsewhere, too")
    grants = parser.add_argument_group("grants")
    grants.add_argument("--grants", action="store_true", help="GRANT statements for the roles that are named")
    grants.add_argument("--publisher", metavar="ROLE", help="who publishes: INSERT, and nothing else")
    grants.add_argument("--worker", metavar="ROLE", help="who handles")
    grants.add_argument("--operator", metavar="ROLE", help="who looks, redrives, purges and pauses")
    grants.add_argument("--receiver", metavar="ROLE", help="who receives messages from elsewhere, with --inbox")


def run(options: Namespace) -> str:
    tables = _tables(options)
    roles = Roles(
        publisher=options.publisher, worker=options.worker, operator=options.operator, receiver=options.receiver
    )
    if options.grants:
        if roles == Roles():
            raise Refused("--grants needs at least one of --publisher, --worker, --operator and --receiver")
        if options.receiver is not None and not options.inbox:
            raise Refused("--receiver is about the inbox; add --inbox")
        if options.dialect != "postgresql":
            raise Refused(f"--grants is for PostgreSQL; {options.dialect} has no roles")
        statements = grant_statements(tables, roles)
    elif roles != Roles():
        raise Refused("--publisher, --worker, --operator and --receiver are about --grants, which is not given")
    else:
        statements = create_statements(tables, options.dialect)
    return "\n".join(f"{statement};" for statement in statements)


def _tables(options: Namespace) -> Tables:
    table = options.table
    return Tables(
        outbox=table,
        dead_letters=None if options.no_dead_letters else options.dead_letters or f"{table}_dlq",
        archive=f"{table}_archive" if options.archive else None,
        queues=None if options.no_queues else f"{table}_queues",
        schema=options.schema,
        inbox=f"{table}_inbox" if options.inbox else None,
    )
