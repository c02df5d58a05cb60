"""The statements for PostgreSQL 13 and later.

The database's clock is `statement_timestamp()`: `now()` stands still inside a transaction, and a test's transaction may be
long. Arrays carry batches, so that a statement's text, and its plan, is the same for one row and for a thousand.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from math import inf
from uuid import UUID

from outbox_core.message import Delivery, NewMessage, read_headers
from outbox_core.outcome import DeadLetter, Outcome, Release, Retry
from outbox_core.schema import Column
from outbox_core.sql.catalogue import LiveColumn, LiveIndex, compare
from outbox_core.sql.dialect import (
    ANEW,
    MAX_HOPS,
    Dialect,
    KeyLook,
    Row,
    Settlements,
    Statement,
    counts,
    same_envelope,
    wake_lock,
)
from outbox_core.store import Difference, KeyWant, Want

# A queue table's statistics are stale by nature, and a plan made while it was empty ruins the claim once it is not.
# The rest guards a worker's own sessions against settings that suit an application and not a queue.
_SESSION_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "statement_timeout": "10s",
}


_LEASE = """acquired_token = CASE WHEN message.acquired_token IS NULL THEN CAST(:token AS uuid)
                                      ELSE CAST(:suspect AS uuid) END,
                leased_until = statement_timestamp() + make_interval(secs => CAST(:lease AS float8))"""
_DELIVERY = """RETURNING message.id, message.message_id, message.queue, message.key, message.payload,
                      CAST(message.headers AS text), message.priority, message.attempts_count, message.deliveries_count,
                      date_part('epoch', message.created_at), date_part('epoch', message.first_attempt_at),
                      date_part('epoch', message.next_attempt_at), message.acquired_token,
                      date_part('epoch', statement_timestamp())"""

# Whoever gives a suspect back leaves its token there, for the next worker to know, but no lease.
_IS_OURS = "message.id = held.id AND message.acquired_token = held.token AND message.leased_until IS NOT NULL"

# Wakes the workers of the queues in `back`, and counts its rows.
_TOLD = """told AS (SELECT pg_notify(:channel, queue) FROM back GROUP BY queue)
            SELECT count(*), (SELECT count(*) FROM told) FROM back"""


class PostgreSQL(Dialect):
    name = "postgresql"
    remote = True
    notifies = True
    settles_in_transaction = False

    # Publishing

    def insert(self, messages: Sequence[NewMessage], *, wake: bool, blindly: bool = False) -> Sequence[Statement]:
        return [self._insert_run(run, wake=wake, blindly=blindly) for run in same_envelope(messages)]

    # RETURNING and a conflict's target need SELECT on the columns that they name; without any, INSERT is enough.
    def _insert_run(self, run: Sequence[NewMessage], *, wake: bool, blindly: bool) -> Statement:
        first = run[0]
        parameters: dict[str, object] = {
            "queue": first.queue,
            "key": first.key,
            "priority": first.priority,
            "timer_id": first.timer_id,
        }
        due = "statement_timestamp()"
        if first.available_at is not None:
            due, parameters["available_at"] = "CAST(:available_at AS timestamptz)", first.available_at
        elif first.delay is not None:
            due += " + make_interval(secs => CAST(:delay AS float8))"
            parameters["delay"] = first.delay
        if len(run) == 1:
            source, message_id = self._one_row, "CAST(:message_id AS uuid)"  # a changed timer's row keeps another
            parameters |= {"message_id": first.message_id, "payload": first.payload, "headers": first.headers}
        else:
            source, message_id = self._many_rows, "message_id"
            parameters |= {
                "message_ids": [message.message_id for message in run],
                "payloads": [message.payload for message in run],
                "headers": [message.headers for message in run],
            }
        returned = [] if blindly else ["id", message_id if first.may_conflict else "NULL"]
        if wake:
            returned.append(self._wake)
            parameters |= {"channel": self.tables.channel, "wake_lock": wake_lock(self.tables.channel, first.queue)}
        returning = f"RETURNING {', '.join(returned)}" if returned else ""
        # Each row is written tentatively where a conflict is provided for, which costs a third of the insert.
        conflict = self._conflict[first.timer_conflict] if first.may_conflict else ""
        return Statement(f"{source.format(due=due)} {conflict} {returning}", parameters)

    @cached_property
    def _insert_columns(self) -> str:
        return (
            f"INSERT INTO {self.outbox} (message_id, queue, key, payload, headers, priority, timer_id, next_attempt_at)"
        )

    @cached_property
    def _one_row(self) -> str:
        return f"""{self._insert_columns}
            VALUES (CAST(:message_id AS uuid), :queue, :key, CAST(:payload AS bytea), CAST(CAST(:headers AS text) AS jsonb),
                    CAST(:priority AS smallint), :timer_id, {{due}})"""

    @cached_property
    def _many_rows(self) -> str:
        return f"""{self._insert_columns}
            SELECT message.message_id, CAST(:queue AS text), CAST(:key AS text), message.payload,
                   CAST(message.headers AS jsonb), CAST(:priority AS smallint), CAST(:timer_id AS text), {{due}}
            FROM unnest(CAST(:message_ids AS uuid[]), CAST(:payloads AS bytea[]), CAST(:headers AS text[]))
                 WITH ORDINALITY AS message (message_id, payload, headers, place)
            ORDER BY message.place"""

    @cached_property
    def _conflict(self) -> dict[str, str]:
        timer = "ON CONFLICT (queue, timer_id) WHERE timer_id IS NOT NULL AND failure_reason IS NULL DO UPDATE SET"
        free = f"""WHERE {self.outbox}.leased_until IS NULL OR {self.outbox}.leased_until <= statement_timestamp()"""
        later = f"EXCLUDED.next_attempt_at > {self.outbox}.next_attempt_at"
        return {
            "ignore": "ON CONFLICT DO NOTHING",
            "extend": f"""{timer}
                next_attempt_at = greatest(EXCLUDED.next_attempt_at, {self.outbox}.next_attempt_at),
                payload = CASE WHEN {later} THEN EXCLUDED.payload ELSE {self.outbox}.payload END,
                headers = CASE WHEN {later} THEN EXCLUDED.headers ELSE {self.outbox}.headers END,
                {", ".join(f"{name} = CASE WHEN {later} THEN {value} ELSE {self.outbox}.{name} END" for name, value in ANEW)}
                {free}""",
            "replace": f"""{timer}
                next_attempt_at = EXCLUDED.next_attempt_at, payload = EXCLUDED.payload, headers = EXCLUDED.headers,
                key = EXCLUDED.key, priority = EXCLUDED.priority,
                {", ".join(f"{name} = {value}" for name, value in ANEW)}
                {free}""",
        }

    # NOTIFY makes every committing transaction queue behind one lock until it is on disk, so it is sent only where a
    # worker sleeps. A sleeper holds the queue's lock exclusively; publishers share it until they have committed
    # (docs/decisions/0002-wake-ups.md). The subquery refers to nothing, so it runs once for any number of rows.
    _wake = """(
                SELECT CASE WHEN pg_try_advisory_xact_lock_shared(CAST(:wake_lock AS bigint)) THEN NULL
                            ELSE CAST(pg_notify(:channel, :queue) AS text) END)"""

    def cancel_timer(self, queue: str, timer_id: str) -> Statement:
        return Statement(
            f"""DELETE FROM {self.outbox}
                WHERE queue = :queue AND timer_id = :timer_id AND failure_reason IS NULL
                  AND (leased_until IS NULL OR leased_until <= statement_timestamp())
                RETURNING id""",
            {"queue": queue, "timer_id": timer_id},
        )

    # A worker's link

    def setup(self) -> Sequence[Statement]:
        # Through the catalogue, because a server may be older than a setting.
        values = ", ".join(f"('{name}', '{value}')" for name, value in _SESSION_SETTINGS.items())
        return [
            Statement(
                f"""SELECT set_config(wanted.name, wanted.value, false)
                    FROM (VALUES {values}) AS wanted (name, value) JOIN pg_settings USING (name)""",
                {},
            )
        ]

    def claim(
        self, wants: Sequence[Want], *, total: int, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement:
        return Statement(
            self._claim,
            {
                "queues": [want.band.queue for want in wants],
                "priorities": [want.band.priority for want in wants],
                "limits": [want.limit for want in wants],
                "sinces": [-inf if want.since is None else want.since for want in wants],
                "total": total,
                "most_bytes": most_bytes,
                "lease": lease,
                "token": token,
                "suspect": suspect,
            },
        )

    # One ordered index scan a band, each stopping at its limit; LockRows below the limits locks only what is taken.
    # The join by ctid is safe because the rows stay locked, and it spares the second index descent. A row that was
    # leased before gets the second token: RETURNING cannot see the old values, and a suspect has to be told apart.
    # The sizes add up above the limits, in the order of what was locked; a row over the sum is free again when the
    # statement ends. `octet_length` reads no payload that is stored elsewhere.
    @cached_property
    def _claim(self) -> str:
        return f"""UPDATE {self.outbox} AS message
            SET {_LEASE}
            WHERE message.ctid = ANY (ARRAY(
                SELECT ctid
                FROM (
                    SELECT ctid, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before
                    FROM (
                        SELECT ready.ctid, ready.size
                        FROM unnest(CAST(:queues AS text[]), CAST(:priorities AS smallint[]), CAST(:limits AS int[]),
                                    CAST(:sinces AS float8[])) AS want (queue, priority, most, since)
                        CROSS JOIN LATERAL (
                            SELECT candidate.ctid, octet_length(candidate.payload) AS size
                            FROM {self.outbox} AS candidate
                            WHERE candidate.queue = want.queue
                              AND candidate.priority = want.priority
                              AND candidate.failure_reason IS NULL AND candidate.key IS NULL
                              AND candidate.next_attempt_at >= to_timestamp(want.since)
                              AND candidate.next_attempt_at <= statement_timestamp()
                              AND (candidate.leased_until IS NULL OR candidate.leased_until <= statement_timestamp())
                            ORDER BY candidate.next_attempt_at, candidate.id
                            LIMIT want.most
                            FOR UPDATE SKIP LOCKED
                        ) AS ready
                        LIMIT CAST(:total AS int)
                    ) AS locked
                ) AS counted
                WHERE before < CAST(:most_bytes AS bigint)
            ))
            {_DELIVERY}"""

    # From each key's first row to the next key's, one descent of the key index each, and for those that are claimable another
    # that counts. A key is claimable if its first row is due and free, and no row holds the key: a row that was published
    # late may lie before one that a worker has. OFFSET 0, or the planner has all of it asked again for each use of `length`.
    def look_at_keys(self, want: KeyWant) -> Statement:
        return Statement(
            self._look_at_keys,
            {
                "queue": want.queue,
                "after": want.after or "",
                "most": want.limit,
                "depth": want.depth,
                "hops": MAX_HOPS,
            },
        )

    @cached_property
    def _look_at_keys(self) -> str:
        def lane(after: str) -> str:
            return f"""SELECT first.name, first.due,
                              CASE WHEN first.due > statement_timestamp() OR first.leased
                                     OR {self._is_held("first.name")} THEN 0
                                   WHEN CAST(:depth AS int) = 1 THEN 1
                                   ELSE (SELECT CAST(count(*) AS int)
                                         FROM (SELECT FROM {self.outbox}
                                               WHERE queue = :queue AND key = first.name AND failure_reason IS NULL
                                               LIMIT CAST(:depth AS int)) AS run)
                              END AS length
                       FROM (SELECT key AS name, next_attempt_at AS due,
                                    coalesce(leased_until > statement_timestamp(), false) AS leased
                             FROM {self.outbox}
                             WHERE queue = :queue AND failure_reason IS NULL AND key > {after}
                             ORDER BY key, id
                             LIMIT 1) AS first
                       OFFSET 0"""

        return f"""WITH RECURSIVE lane (name, due, length, hop, found) AS (
                SELECT one.name, one.due, one.length, 1, one.length
                FROM ({lane("CAST(:after AS text)")}) AS one
                UNION ALL
                SELECT one.name, one.due, one.length, lane.hop + 1, lane.found + one.length
                FROM lane CROSS JOIN LATERAL ({lane("lane.name")}) AS one
                WHERE lane.hop < CAST(:hops AS int) AND lane.found < CAST(:most AS int)
            )
            SELECT array_agg(name ORDER BY hop) FILTER (WHERE length > 0),
                   array_agg(length ORDER BY hop) FILTER (WHERE length > 0),
                   max(name) FILTER (WHERE hop = CAST(:hops AS int) OR found >= CAST(:most AS int)),
                   CAST(extract(epoch FROM min(due) FILTER (WHERE due > statement_timestamp())
                                           - statement_timestamp()) AS float8)
            FROM lane"""

    def read_keys(self, rows: Sequence[Row]) -> KeyLook:
        ((keys, lengths, after, due_in),) = rows
        return KeyLook(dict(zip(keys or (), lengths or (), strict=True)), after, due_in)

    def _is_held(self, key: str) -> str:
        return f"""EXISTS (SELECT FROM {self.outbox} AS holder
                           WHERE holder.queue = :queue AND holder.held_key = {key}
                             AND (holder.leased_until > statement_timestamp() OR holder.failure_reason IS NOT NULL))"""

    def claim_keys(
        self, queue: str, runs: Mapping[str, int], *, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement:
        return Statement(
            self._claim_keys,
            {
                "queue": queue,
                "keys": list(runs),
                "runs": list(runs.values()),
                "most_bytes": most_bytes,
                "lease": lease,
                "token": token,
                "suspect": suspect,
            },
        )

    # Of each key the rows from the first up to one that is not due or not free. Whoever has changed or locked one of them
    # since this statement began ends the run before it, or order would be lost: what is skipped is not passed over. A row
    # that was changed has another ctid when it is locked, if it is locked at all, so it is not joined; see `_claim`.
    # Only the last row of a run says that the key is held: the others are heap-only-tuple updates, and are settled before
    # it (`Runs`). Whether somebody else holds the key is asked afterwards, by `rivals`.
    # The sizes add up before anything is locked, so that a run which ends at the sum has its last row there, and no row
    # after it is locked.
    @cached_property
    def _claim_keys(self) -> str:
        free = """next_attempt_at <= statement_timestamp()
                  AND (leased_until IS NULL OR leased_until <= statement_timestamp())"""
        return f"""WITH candidate AS MATERIALIZED (
                SELECT ctid, number, place
                FROM (
                    SELECT message.ctid, lane.number, message.place,
                           sum(message.size) OVER (ROWS UNBOUNDED PRECEDING) - message.size AS before
                    FROM unnest(CAST(:keys AS text[]), CAST(:runs AS int[])) WITH ORDINALITY AS lane (name, run, number)
                    CROSS JOIN LATERAL (
                        SELECT ctid, size, row_number() OVER (ORDER BY id) AS place,
                               bool_and({free}) OVER (ORDER BY id) AS startable
                        FROM (SELECT ctid, id, next_attempt_at, leased_until, octet_length(payload) AS size
                              FROM {self.outbox}
                              WHERE queue = :queue AND key = lane.name AND failure_reason IS NULL
                              ORDER BY id
                              LIMIT lane.run) AS first
                    ) AS message
                    WHERE message.startable
                ) AS counted
                WHERE before < CAST(:most_bytes AS bigint)
            ), locked AS MATERIALIZED (
                SELECT ctid FROM {self.outbox}
                WHERE ctid = ANY (ARRAY(SELECT ctid FROM candidate)) AND failure_reason IS NULL AND {free}
                FOR UPDATE SKIP LOCKED
            ), whole AS (
                SELECT candidate.ctid, bool_and(locked.ctid IS NOT NULL) OVER line AS ours,
                       lead(locked.ctid) OVER line IS NULL AS last
                FROM candidate LEFT JOIN locked ON locked.ctid = candidate.ctid
                WINDOW line AS (PARTITION BY candidate.number ORDER BY candidate.place)
            )
            UPDATE {self.outbox} AS message
            SET {_LEASE}, held_key = CASE WHEN whole.last THEN message.key END
            FROM whole
            WHERE whole.ours AND message.ctid = whole.ctid
            {_DELIVERY}"""

    claims_collide = True

    def rivals(self, queue: str, keys: Sequence[str], *, token: UUID, suspect: UUID) -> Statement:
        return Statement(
            f"""SELECT DISTINCT holder.held_key
                FROM unnest(CAST(:keys AS text[])) AS lane (name)
                JOIN {self.outbox} AS holder ON holder.queue = :queue AND holder.held_key = lane.name
                WHERE holder.failure_reason IS NOT NULL
                   OR holder.leased_until > statement_timestamp()
                      AND holder.acquired_token NOT IN (CAST(:token AS uuid), CAST(:suspect AS uuid))""",
            {"queue": queue, "keys": list(keys), "token": token, "suspect": suspect},
        )

    def read_delivery(self, row: Row, suspect: UUID) -> Delivery:
        return Delivery(
            id=row[0],
            message_id=row[1],
            queue=row[2],
            key=row[3],
            payload=bytes(row[4]),
            headers=read_headers(row[5]),
            priority=row[6],
            attempts=row[7],
            deliveries=row[8],
            created=row[9],
            first_attempt=row[10],
            due=row[11],
            token=row[12],
            claimed=row[13],
            suspect=row[12] == suspect,
        )

    def survey(self, queues: Sequence[str]) -> Statement:
        return Statement(self._survey, {"queues": list(queues)})

    # Hops from one priority to the next lower one, one index probe each; the row without a priority ends a queue and
    # carries whether it is paused. What is due within the last second may have become due after the claim looked.
    @cached_property
    def _survey(self) -> str:
        paused = "false"
        if self.tables.queues is not None:
            paused = f"""EXISTS (SELECT FROM {self.tables.sql(self.tables.queues)} AS control
                                 WHERE control.queue = band.queue AND control.paused_at IS NOT NULL)"""
        highest = f"""SELECT max(message.priority) FROM {self.outbox} AS message
                      WHERE message.failure_reason IS NULL AND message.key IS NULL"""
        keyed = f"""EXISTS (SELECT FROM {self.outbox} AS message
                            WHERE message.queue = band.queue AND message.key IS NOT NULL
                              AND message.failure_reason IS NULL)"""
        return f"""WITH RECURSIVE band (queue, priority) AS (
                SELECT wanted.queue, ({highest} AND message.queue = wanted.queue)
                FROM unnest(CAST(:queues AS text[])) AS wanted (queue)
                UNION ALL
                SELECT band.queue, ({highest} AND message.queue = band.queue AND message.priority < band.priority)
                FROM band
                WHERE band.priority IS NOT NULL
            )
            SELECT band.queue, band.priority, (
                SELECT CAST(extract(epoch FROM message.next_attempt_at - statement_timestamp()) AS float8)
                FROM {self.outbox} AS message
                WHERE message.queue = band.queue AND message.priority = band.priority
                  AND message.failure_reason IS NULL AND message.key IS NULL AND message.acquired_token IS NULL
                  AND message.next_attempt_at > statement_timestamp() - interval '1 second'
                ORDER BY message.next_attempt_at, message.id
                LIMIT 1
            ), band.priority IS NULL AND {paused}, band.priority IS NULL AND {keyed}
            FROM band"""

    # It runs beside settlements of the same rows, and of some that a handler's transaction has locked. Who waits for
    # nobody takes part in no deadlock, and the other leases do not run down meanwhile.
    def extend(self, deliveries: Sequence[Delivery], lease: float) -> Statement:
        return Statement(
            f"""WITH free AS MATERIALIZED (
                    SELECT message.id
                    FROM {self.outbox} AS message
                    JOIN {self._held} ON {_IS_OURS}
                    FOR NO KEY UPDATE OF message SKIP LOCKED
                )
                UPDATE {self.outbox} AS message
                SET leased_until = statement_timestamp() + make_interval(secs => CAST(:lease AS float8))
                FROM free
                WHERE message.id = free.id
                RETURNING message.id""",
            {**_leases(sorted(deliveries, key=lambda delivery: delivery.id)), "lease": lease},
        )

    def ours(self, deliveries: Sequence[Delivery]) -> Statement:
        return Statement(
            f"""SELECT message.id
                FROM {self.outbox} AS message
                JOIN {self._held} ON {_IS_OURS}""",
            _leases(deliveries),
        )

    def begin(self, delivery: Delivery) -> Statement:
        return Statement(
            f"""UPDATE {self.outbox} SET deliveries_count = CAST(:deliveries AS int) + 1
                WHERE id = CAST(:id AS bigint) AND acquired_token = CAST(:token AS uuid) AND leased_until IS NOT NULL
                RETURNING id""",
            {"id": delivery.id, "token": delivery.token, "deliveries": delivery.deliveries},
        )

    def settle(self, settlements: Settlements, *, worker: str) -> Sequence[Statement]:
        statements = []
        if settlements.acked:
            statements.append(Statement(self._ack, _leases(settlements.acked)))
        if settlements.moved:
            statements.append(Statement(self._move, _moves(settlements.moved)))
        if settlements.dead:
            statements.append(Statement(self._bury, {**_deaths(settlements.dead), "worker": worker}))
        if settlements.parked:
            halting = [outcome.halts for _, outcome in settlements.parked]
            statements.append(Statement(self._park, {**_deaths(settlements.parked), "halting": halting}))
        return statements

    _held = "unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[])) AS held (id, token)"

    @cached_property
    def _ack(self) -> str:
        delete = f"""DELETE FROM {self.outbox} AS message USING {self._held}
            WHERE {_IS_OURS}"""
        if self.tables.archive is None:
            return f"{delete} RETURNING message.id"
        columns = (
            "message_id, queue, key, payload, headers, priority, timer_id, created_at, deliveries_count, "
            "attempts_count, first_attempt_at"
        )
        return f"""WITH gone AS ({delete} RETURNING message.*), kept AS (
                INSERT INTO {self.tables.sql(self.tables.archive)} ({columns}, last_attempt_at)
                SELECT {columns}, statement_timestamp() FROM gone
            )
            SELECT id FROM gone"""

    @cached_property
    def _move(self) -> str:
        return f"""UPDATE {self.outbox} AS message
            SET acquired_token = CASE WHEN held.suspect THEN message.acquired_token END,
                leased_until = NULL,
                held_key = NULL,
                next_attempt_at = CASE WHEN held.delay IS NULL THEN message.next_attempt_at
                                       ELSE statement_timestamp() + make_interval(secs => held.delay) END,
                attempts_count = message.attempts_count + held.failed,
                deliveries_count = message.deliveries_count + held.started,
                first_attempt_at = CASE WHEN held.failed = 0 THEN message.first_attempt_at
                                        ELSE coalesce(message.first_attempt_at, statement_timestamp()) END,
                last_attempt_at = CASE WHEN held.failed = 0 THEN message.last_attempt_at
                                       ELSE statement_timestamp() END
            FROM unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[]), CAST(:delays AS float8[]),
                        CAST(:failed AS int[]), CAST(:started AS int[]), CAST(:suspects AS boolean[]))
                 AS held (id, token, delay, failed, started, suspect)
            WHERE {_IS_OURS}
            RETURNING message.id"""

    @cached_property
    def _bury(self) -> str:
        held = """unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[]), CAST(:reasons AS text[]),
                         CAST(:errors AS text[]), CAST(:failed AS int[]), CAST(:started AS int[]))
                  AS held (id, token, reason, error, failed, started)"""
        message = "message_id, queue, key, payload, headers, priority, timer_id, created_at"
        return f"""WITH gone AS (
                DELETE FROM {self.outbox} AS message USING {held}
                WHERE {_IS_OURS}
                RETURNING message.*, held.reason, held.error, held.failed, held.started
            ), buried AS (
                INSERT INTO {self.tables.need("burying", "dead_letters")}
                    ({message}, deliveries_count, attempts_count, first_attempt_at, last_attempt_at,
                     failure_reason, last_exception, worker)
                SELECT {message}, deliveries_count + started, attempts_count + failed,
                       coalesce(first_attempt_at, statement_timestamp()), statement_timestamp(),
                       reason, error, CAST(:worker AS text)
                FROM gone
            )
            SELECT id FROM gone"""

    @cached_property
    def _park(self) -> str:
        return f"""UPDATE {self.outbox} AS message
            SET acquired_token = NULL, leased_until = NULL,
                held_key = CASE WHEN held.halting THEN message.key END,
                failure_reason = held.reason, last_exception = held.error,
                attempts_count = message.attempts_count + held.failed,
                deliveries_count = message.deliveries_count + held.started,
                first_attempt_at = coalesce(message.first_attempt_at, statement_timestamp()),
                last_attempt_at = statement_timestamp()
            FROM unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[]), CAST(:reasons AS text[]),
                        CAST(:errors AS text[]), CAST(:failed AS int[]), CAST(:started AS int[]),
                        CAST(:halting AS boolean[]))
                 AS held (id, token, reason, error, failed, started, halting)
            WHERE {_IS_OURS}
            RETURNING message.id"""

    # A sleeper tries for each queue's lock. It gets none while a transaction that published without notifying is open,
    # and once it has it, everything that it was not told about can be seen. A lock that cannot even be shared is held
    # by another sleeper, for whom publishers notify just as well.
    def arm(self, queues: Sequence[str]) -> Statement:
        return Statement(
            """SELECT CASE WHEN pg_try_advisory_lock(lock) THEN 'armed'
                           WHEN pg_try_advisory_lock_shared(lock) THEN 'publishing'
                           ELSE 'proxied' END
               FROM unnest(CAST(:locks AS bigint[])) AS sleeper (lock)""",
            {"locks": [wake_lock(self.tables.channel, queue) for queue in queues]},
        )

    def disarm(self) -> Statement:
        return Statement("SELECT pg_advisory_unlock_all()", {})

    def notify(self, payload: str) -> Statement:
        return Statement("SELECT pg_notify(:channel, :payload)", {"channel": self.tables.channel, "payload": payload})

    # Operating

    def fetch_unprocessed(self, queue: str | None, limit: int) -> Statement:
        return Statement(
            f"""{self._pending}
                WHERE CAST(:queue AS text) IS NULL OR queue = CAST(:queue AS text)
                ORDER BY id
                LIMIT CAST(:limit AS int)""",
            {"queue": queue, "limit": limit},
        )

    def find_unprocessed(self, id: int | UUID) -> Statement:
        where, parameters = self.identified(id)
        return Statement(f"{self._pending} WHERE {where} AND failure_reason IS NULL", parameters)

    @cached_property
    def _pending(self) -> str:
        return f"""SELECT id, message_id, queue, key, payload, CAST(headers AS text), priority, timer_id, attempts_count,
                          deliveries_count, created_at, next_attempt_at,
                          coalesce(leased_until > statement_timestamp(), false), failure_reason
                   FROM {self.outbox}"""

    def identified(self, id: int | UUID) -> tuple[str, dict[str, object]]:
        if isinstance(id, UUID):
            return "message_id = CAST(:message_id AS uuid)", {"message_id": id}
        return "id = CAST(:id AS bigint)", {"id": id}

    def read_uuid(self, value: UUID) -> UUID:
        return value

    def read_moment(self, value: datetime) -> datetime:
        return value

    def redrive(
        self,
        queue: str | None,
        key: str | None,
        ids: Sequence[int] | None,
        reason: str | None,
        limit: int | None,
        *,
        dry_run: bool,
    ) -> Sequence[Statement]:
        parameters = {**self._filter(queue, key, ids, reason), "limit": limit}
        both = [self._redrive_parked(dry_run=dry_run)]
        if self.tables.dead_letters is not None:
            both.insert(0, self._redrive_dead(self.tables.sql(self.tables.dead_letters), dry_run=dry_run))
        return [
            Statement(text, parameters if dry_run else {**parameters, "channel": self.tables.channel}) for text in both
        ]

    def _filter(
        self, queue: str | None, key: str | None, ids: Sequence[int] | None, reason: str | None
    ) -> dict[str, object]:
        return {"queue": queue, "key": key, "ids": None if ids is None else list(ids), "reason": reason}

    def _first_past(self, failed_at: str, of: str) -> str:
        age = f"statement_timestamp() - {failed_at}"
        return f"""SELECT id, message_id, queue, CAST(extract(epoch FROM {age}) AS float8)
            {of} AND {age} > make_interval(secs => CAST(:age AS float8))
            ORDER BY id
            LIMIT 1"""

    _picked = """(CAST(:queue AS text) IS NULL OR queue = CAST(:queue AS text))
              AND (CAST(:key AS text) IS NULL OR key = CAST(:key AS text))
              AND (CAST(:reason AS text) IS NULL OR failure_reason = CAST(:reason AS text))"""

    @property
    def _parked(self) -> str:
        """Those among the picked that are dead in the outbox table; *ids* mean them only where there is no other table."""
        if self.tables.dead_letters is None:
            which = (
                "failure_reason IS NOT NULL AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY (CAST(:ids AS bigint[])))"
            )
        else:
            which = "failure_reason IS NOT NULL AND held_key IS NOT NULL AND CAST(:ids AS bigint[]) IS NULL"
        return f"FROM {self.outbox} WHERE {which} AND {self._picked}"

    def _redrive_parked(self, *, dry_run: bool) -> str:
        picked = f"SELECT id {self._parked} ORDER BY id LIMIT CAST(:limit AS bigint)"
        if dry_run:
            return f"SELECT count(*) FROM ({picked}) AS picked"
        return f"""WITH picked AS ({picked} FOR UPDATE SKIP LOCKED), back AS (
                UPDATE {self.outbox} AS dead
                SET failure_reason = NULL, last_exception = NULL, held_key = NULL, timer_id = NULL, attempts_count = 0,
                    deliveries_count = 0, first_attempt_at = NULL, last_attempt_at = NULL,
                    next_attempt_at = statement_timestamp()
                FROM picked WHERE dead.id = picked.id
                RETURNING dead.queue
            ), {_TOLD}"""

    def _unparked(self, table: str) -> str:
        """Those among the picked that are in the table of the dead letters; one whose message is live stays there."""
        return f"""FROM {table} AS dead
            WHERE NOT EXISTS (SELECT FROM {self.outbox} AS live WHERE live.message_id = dead.message_id)
              AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY (CAST(:ids AS bigint[])))
              AND {self._picked}"""

    # Two dead letters of one message id cannot both be live; the older one goes first.
    def _redrive_dead(self, table: str, *, dry_run: bool) -> str:
        picked = f"""SELECT id, message_id {self._unparked(table)}
            ORDER BY id
            LIMIT CASE WHEN CAST(:limit AS bigint) IS NULL THEN NULL
                       ELSE greatest(0, CAST(:limit AS bigint) - (SELECT count(*) {self._parked})) END"""
        if dry_run:
            return f"SELECT count(DISTINCT message_id) FROM ({picked}) AS picked"
        message = "message_id, queue, key, payload, headers, priority, created_at"
        return f"""WITH picked AS ({picked} FOR UPDATE OF dead SKIP LOCKED), changed AS (
                DELETE FROM {table} AS dead USING (SELECT min(id) AS id FROM picked GROUP BY message_id) AS oldest
                WHERE dead.id = oldest.id
                RETURNING dead.*
            ), back AS (
                INSERT INTO {self.outbox} ({message}, next_attempt_at)
                SELECT {message}, statement_timestamp() FROM changed ORDER BY id
                RETURNING queue
            ), {_TOLD}"""

    def release_key(self, queue: str, key: str) -> Sequence[Statement]:
        halting = """queue = CAST(:queue AS text) AND held_key = CAST(:key AS text) AND failure_reason IS NOT NULL"""
        if self.tables.dead_letters is None:
            back = f"UPDATE {self.outbox} SET held_key = NULL WHERE {halting} RETURNING queue"
        else:
            history = """message_id, queue, key, payload, headers, priority, timer_id, created_at, deliveries_count,
                         attempts_count, first_attempt_at, last_attempt_at, failure_reason, last_exception"""
            back = f"""INSERT INTO {self.tables.sql(self.tables.dead_letters)} ({history}, failed_at)
                       SELECT {history}, last_attempt_at FROM gone RETURNING queue"""
        gone = (
            ""
            if self.tables.dead_letters is None
            else f"gone AS (DELETE FROM {self.outbox} WHERE {halting} RETURNING *), "
        )
        return [
            Statement(
                f"WITH {gone}back AS ({back}), {_TOLD}", {"queue": queue, "key": key, "channel": self.tables.channel}
            )
        ]

    def purge_dead_letters(self, older_than: timedelta, queue: str | None, limit: int) -> Statement:
        table = self.tables.need("purge_dead_letters", "dead_letters")
        return Statement(
            f"""DELETE FROM {table} WHERE id = ANY (ARRAY(
                    SELECT id FROM {table}
                    WHERE failed_at < statement_timestamp() - make_interval(secs => CAST(:age AS float8))
                      AND (CAST(:queue AS text) IS NULL OR queue = CAST(:queue AS text))
                    ORDER BY failed_at
                    LIMIT CAST(:limit AS bigint)
                    FOR UPDATE SKIP LOCKED))
                RETURNING id""",
            {"age": older_than.total_seconds(), "queue": queue, "limit": limit},
        )

    def stats(self) -> Statement:
        ready = "failure_reason IS NULL AND next_attempt_at <= statement_timestamp() AND NOT leased"
        return Statement(
            f"""SELECT queue,
                       count(*) FILTER (WHERE {ready}),
                       count(*) FILTER (WHERE failure_reason IS NULL AND next_attempt_at > statement_timestamp()
                                          AND NOT leased),
                       count(*) FILTER (WHERE leased),
                       count(*) FILTER (WHERE failure_reason IS NOT NULL),
                       CAST(extract(epoch FROM statement_timestamp() - min(next_attempt_at) FILTER (WHERE {ready}))
                            AS float8)
                FROM (SELECT queue, failure_reason, next_attempt_at,
                             coalesce(leased_until > statement_timestamp(), false) AS leased
                      FROM {self.outbox}) AS message
                GROUP BY queue""",
            {},
        )

    def blocked_keys(self) -> Statement:
        return Statement(
            f"""SELECT queue, count(*) FROM (
                    SELECT queue, held_key FROM {self.outbox} WHERE held_key IS NOT NULL AND failure_reason IS NOT NULL
                    UNION
                    SELECT queue, key FROM (
                        SELECT queue, key, next_attempt_at, attempts_count, row_number() OVER line AS place,
                               count(*) OVER (PARTITION BY queue, key) AS length
                        FROM {self.outbox}
                        WHERE key IS NOT NULL AND failure_reason IS NULL
                        WINDOW line AS (PARTITION BY queue, key ORDER BY id)
                    ) AS first
                    WHERE place = 1 AND length > 1 AND attempts_count > 0 AND next_attempt_at > statement_timestamp()
                ) AS blocked
                GROUP BY queue""",
            {},
        )

    def dead_counts(self) -> Statement:
        return Statement(f"SELECT queue, count(*) FROM {self.tables.need('stats', 'dead_letters')} GROUP BY queue", {})

    def paused_queues(self) -> Statement:
        table = self.tables.need("pause", "queues")
        return Statement(f"SELECT queue FROM {table} WHERE paused_at IS NOT NULL", {})

    def set_paused(self, queue: str, paused: bool) -> Statement:
        table = self.tables.need("pause", "queues")
        moment = "statement_timestamp()" if paused else "CAST(NULL AS timestamptz)"
        return Statement(
            f"""INSERT INTO {table} AS control (queue, paused_at) VALUES (:queue, {moment})
                ON CONFLICT (queue) DO UPDATE SET paused_at =
                    CASE WHEN EXCLUDED.paused_at IS NULL THEN NULL
                         ELSE coalesce(control.paused_at, EXCLUDED.paused_at) END""",
            {"queue": queue},
        )

    def purge_inbox(self, older_than: timedelta, limit: int) -> Statement:
        table = self.tables.need("purge_inbox", "inbox")
        return Statement(
            f"""DELETE FROM {table} WHERE id = ANY (ARRAY(
                    SELECT id FROM {table}
                    WHERE received_at < statement_timestamp() - make_interval(secs => CAST(:age AS float8))
                    ORDER BY received_at
                    LIMIT CAST(:limit AS bigint)
                    FOR UPDATE SKIP LOCKED))
                RETURNING id""",
            {"age": older_than.total_seconds(), "limit": limit},
        )

    # Drift

    def catalogue(self, table: str) -> Sequence[Statement]:
        name = self.tables.sql(table)
        return [
            Statement(
                """SELECT attname, format_type(atttypid, atttypmod), attnotnull,
                          attidentity <> '' OR atthasdef
                   FROM pg_attribute
                   WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped""",
                {"name": name},
            ),
            Statement(
                """SELECT indisunique, indisvalid, pg_get_indexdef(indexrelid),
                          coalesce(pg_get_expr(indpred, indrelid), '')
                   FROM pg_index
                   WHERE indrelid = to_regclass(:name)""",
                {"name": name},
            ),
        ]

    def read_catalogue(self, table: str, answers: Sequence[Sequence[Row]]) -> Sequence[Difference]:
        columns, indexes = answers
        if not columns:
            return [Difference(f"table {table} does not exist", fatal=True, missing_table=True)]
        spec = self.tables.described()[table]
        return compare(
            table,
            spec,
            [LiveColumn(name, kind, not not_null, has_default) for name, kind, not_null, has_default in columns],
            [
                LiveIndex(_indexed(definition), unique, predicate)
                for unique, valid, definition, predicate in indexes
                if valid
            ],
            type_of,
        )


_TYPES = {
    "identity": "bigint",
    "smallint": "smallint",
    "integer": "integer",
    "text": "text",
    "uuid": "uuid",
    "bytes": "bytea",
    "json": "jsonb",
    "timestamp": "timestamp with time zone",
}


def type_of(column: Column) -> str:
    """A column's type as the catalogue has it."""
    return f"character varying({column.length})" if column.kind == "string" else _TYPES[column.kind]


def _indexed(definition: str) -> tuple[str, ...]:
    columns = definition.split(" USING btree (", 1)[-1].split(")", 1)[0]
    return tuple(column.strip().strip('"') for column in columns.split(","))


def _leases(deliveries: Sequence[Delivery]) -> dict[str, object]:
    return {
        "ids": [delivery.id for delivery in deliveries],
        "tokens": [delivery.token for delivery in deliveries],
    }


def _deaths(dead: Sequence[tuple[Delivery, DeadLetter]]) -> dict[str, object]:
    return {
        **_leases([delivery for delivery, _ in dead]),
        "reasons": [outcome.reason for _, outcome in dead],
        "errors": [outcome.error for _, outcome in dead],
        **_counts(dead),
    }


def _moves(moved: Sequence[tuple[Delivery, Retry | Release]]) -> dict[str, object]:
    return {
        **_leases([delivery for delivery, _ in moved]),
        "delays": [outcome.delay if isinstance(outcome, Retry) else None for _, outcome in moved],
        "suspects": [isinstance(outcome, Release) and delivery.still_suspect for delivery, outcome in moved],
        **_counts(moved),
    }


def _counts(settled: Sequence[tuple[Delivery, Outcome]]) -> dict[str, object]:
    both = [counts(delivery, outcome) for delivery, outcome in settled]
    return {"failed": [failed for failed, _ in both], "started": [started for _, started in both]}
