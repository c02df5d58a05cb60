"""The statements for SQLite 3.35 and later: the same semantics with one writer, for development, demos and small sites.

Times are text in UTC with six digits of a second, as Django and SQLAlchemy write them; UUIDs are 32 hexadecimal digits.
Batches travel as JSON. A claim is one UPDATE, so it takes the write lock at once and never has to upgrade a read.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from outbox_core.message import Delivery, NewMessage, read_headers
from outbox_core.outcome import DeadLetter, Release, Retry
from outbox_core.schema import Column
from outbox_core.sql.catalogue import LiveColumn, LiveIndex, compare
from outbox_core.sql.dialect import ANEW, MAX_HOPS, Dialect, KeyLook, Row, Settlements, Statement, counts, same_envelope
from outbox_core.store import Difference, KeyWant, Want

MAX_ROWS = 5_000  # three parameters a row stay below SQLite's 32,766

NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
BEGINNING = "0001-01-01 00:00:00.000000"


def _in(seconds: str) -> str:
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds')"


_LEASE = f"""acquired_token = CASE WHEN acquired_token IS NULL THEN :token ELSE :suspect END,
                    leased_until = {_in(":lease")}"""
_DELIVERY = f"""RETURNING id, message_id, queue, key, payload, headers, priority, attempts_count, deliveries_count,
                          created_at, first_attempt_at, next_attempt_at, acquired_token, {NOW}"""


_CHANGES = Statement("SELECT changes()", {})


class SQLite(Dialect):
    name = "sqlite"
    remote = False
    notifies = False
    settles_in_transaction = True

    # Publishing

    def insert(self, messages: Sequence[NewMessage], *, wake: bool, blindly: bool = False) -> Sequence[Statement]:
        return [
            self._insert_run(run[start : start + MAX_ROWS])
            for run in same_envelope(messages)
            for start in range(0, len(run), MAX_ROWS)
        ]

    def _insert_run(self, run: Sequence[NewMessage]) -> Statement:
        first = run[0]
        parameters: dict[str, object] = {
            "queue": first.queue,
            "key": first.key,
            "priority": first.priority,
            "timer_id": first.timer_id,
            "delay": first.delay or 0.0,
            "available_at": None if first.available_at is None else _text(first.available_at),
        }
        rows = []
        for place, message in enumerate(run):
            rows.append(
                f"(:message_id_{place}, :queue, :key, :payload_{place}, :headers_{place}, :priority, :timer_id, "
                f"coalesce(:available_at, {_in(':delay')}))"
            )
            parameters[f"message_id_{place}"] = message.message_id.hex
            parameters[f"payload_{place}"] = message.payload
            parameters[f"headers_{place}"] = message.headers
        message_id = "message_id" if len(run) > 1 else ":message_id_0"  # a changed timer's row keeps another
        return Statement(
            f"""INSERT INTO {self.outbox}
                (message_id, queue, key, payload, headers, priority, timer_id, next_attempt_at)
                VALUES {", ".join(rows)}
                {self._conflict(first)}
                RETURNING id, {message_id if first.may_conflict else "NULL"}""",
            parameters,
        )

    def _conflict(self, message: NewMessage) -> str:
        if message.timer_conflict == "ignore":
            return "ON CONFLICT DO NOTHING"
        table = self.outbox
        later = f"excluded.next_attempt_at > {table}.next_attempt_at"
        if message.timer_conflict == "extend":
            changes = f"""next_attempt_at = max(excluded.next_attempt_at, {table}.next_attempt_at),
                payload = CASE WHEN {later} THEN excluded.payload ELSE {table}.payload END,
                headers = CASE WHEN {later} THEN excluded.headers ELSE {table}.headers END,
                {", ".join(f"{name} = CASE WHEN {later} THEN {value} ELSE {table}.{name} END" for name, value in ANEW)}"""
        else:
            changes = f"""next_attempt_at = excluded.next_attempt_at, payload = excluded.payload,
                headers = excluded.headers, key = excluded.key, priority = excluded.priority,
                {", ".join(f"{name} = {value}" for name, value in ANEW)}"""
        return f"""ON CONFLICT (queue, timer_id) WHERE timer_id IS NOT NULL AND failure_reason IS NULL
            DO UPDATE SET {changes} WHERE {table}.leased_until IS NULL OR {table}.leased_until <= {NOW}"""

    def cancel_timer(self, queue: str, timer_id: str) -> Statement:
        return Statement(
            f"""DELETE FROM {self.outbox}
                WHERE queue = :queue AND timer_id = :timer_id AND failure_reason IS NULL
                  AND (leased_until IS NULL OR leased_until <= {NOW})
                RETURNING id""",
            {"queue": queue, "timer_id": timer_id},
        )

    # A worker's link

    def setup(self) -> Sequence[Statement]:
        # WAL lets a worker read while the application writes; it stays with the file.
        return [Statement("PRAGMA journal_mode = WAL", {}), Statement("PRAGMA busy_timeout = 5000", {})]

    def claim(
        self, wants: Sequence[Want], *, total: int, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement:
        parameters: dict[str, object] = {"total": total, "lease": lease, "token": token.hex, "suspect": suspect.hex}
        parameters["most_bytes"] = most_bytes
        bands = []
        for place, want in enumerate(wants):
            parameters[f"queue_{place}"] = want.band.queue
            parameters[f"priority_{place}"] = want.band.priority
            parameters[f"limit_{place}"] = want.limit
            parameters[f"since_{place}"] = (
                BEGINNING if want.since is None else _text(datetime.fromtimestamp(want.since, UTC))
            )
            bands.append(
                f"""SELECT id, size FROM (
                    SELECT id, length(payload) AS size FROM {self.outbox}
                    WHERE queue = :queue_{place} AND priority = :priority_{place}
                      AND failure_reason IS NULL AND key IS NULL
                      AND next_attempt_at >= :since_{place} AND next_attempt_at <= {NOW}
                      AND (leased_until IS NULL OR leased_until <= {NOW})
                    ORDER BY next_attempt_at, id
                    LIMIT :limit_{place})"""
            )
        return Statement(
            f"""UPDATE {self.outbox}
                SET {_LEASE}
                WHERE id IN (
                    SELECT id FROM (SELECT id, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before
                                    FROM (SELECT id, size FROM ({" UNION ALL ".join(bands)}) LIMIT :total))
                    WHERE before < :most_bytes)
                {_DELIVERY}""",
            parameters,
        )

    def look_at_keys(self, want: KeyWant) -> Statement:
        first = f"""SELECT message.id FROM {self.outbox} AS message
                    WHERE message.queue = :queue AND message.failure_reason IS NULL AND message.key > {{after}}
                    ORDER BY message.key, message.id LIMIT 1"""
        ours = f"""message.next_attempt_at <= {NOW} AND (message.leased_until IS NULL OR message.leased_until <= {NOW})
                   AND NOT {self._is_held("message.key")}"""
        return Statement(
            f"""WITH RECURSIVE lane (name, due, ours, hop, found) AS (
                    SELECT message.key, message.next_attempt_at, {ours}, 1, {ours}
                    FROM {self.outbox} AS message WHERE message.id = ({first.format(after=":after")})
                    UNION ALL
                    SELECT message.key, message.next_attempt_at, {ours}, lane.hop + 1, lane.found + ({ours})
                    FROM lane JOIN {self.outbox} AS message ON message.id = ({first.format(after="lane.name")})
                    WHERE lane.hop < :hops AND lane.found < :most
                )
                SELECT json_group_array(name) FILTER (WHERE ours),
                       max(name) FILTER (WHERE hop = :hops OR found = :most),
                       min((julianday(due) - julianday({NOW})) * 86400.0) FILTER (WHERE due > {NOW})
                FROM (SELECT * FROM lane ORDER BY hop)""",
            {"queue": want.queue, "after": want.after or "", "most": want.limit, "hops": MAX_HOPS},
        )

    def read_keys(self, rows: Sequence[Row]) -> KeyLook:
        ((keys, after, due_in),) = rows
        return KeyLook(dict.fromkeys(json.loads(keys), 1), after, due_in)

    def _is_held(self, key: str) -> str:
        return f"""EXISTS (SELECT 1 FROM {self.outbox} AS holder
                           WHERE holder.queue = :queue AND holder.held_key = {key}
                             AND (holder.leased_until > {NOW} OR holder.failure_reason IS NOT NULL))"""

    def claim_keys(
        self, queue: str, runs: Mapping[str, int], *, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement:
        first = f"""SELECT message.id, message.next_attempt_at <= {NOW}
                           AND (message.leased_until IS NULL OR message.leased_until <= {NOW}) AS free
                    FROM {self.outbox} AS message
                    WHERE message.queue = :queue AND message.key = name.value AND message.failure_reason IS NULL
                    ORDER BY message.id
                    LIMIT :run"""
        return Statement(
            f"""WITH lane AS MATERIALIZED (
                    SELECT name.key AS number, name.value AS name, (SELECT max(id) FROM ({first})) AS last,
                           (SELECT min(id) FROM ({first}) WHERE NOT free) AS stop
                    FROM json_each(:keys) AS name
                ), startable AS (
                    SELECT message.id, sum(length(message.payload)) OVER line - length(message.payload) AS before
                    FROM lane JOIN {self.outbox} AS message
                      ON message.queue = :queue AND message.key = lane.name AND message.failure_reason IS NULL
                    WHERE message.id <= lane.last AND message.id < coalesce(lane.stop, lane.last + 1)
                      AND NOT {self._is_held("lane.name")}
                    WINDOW line AS (ORDER BY lane.number, message.id ROWS UNBOUNDED PRECEDING)
                )
                UPDATE {self.outbox}
                SET {_LEASE}, held_key = key
                WHERE id IN (SELECT id FROM startable WHERE before < :most_bytes)
                {_DELIVERY}""",
            {
                "queue": queue,
                "keys": json.dumps(list(runs)),
                "run": max(runs.values()),  # they are all alike, as `look_at_keys` counts
                "most_bytes": most_bytes,
                "lease": lease,
                "token": token.hex,
                "suspect": suspect.hex,
            },
        )

    claims_collide = False  # there is one writer

    def read_delivery(self, row: Row, suspect: UUID) -> Delivery:
        token = UUID(row[12])
        return Delivery(
            id=row[0],
            message_id=UUID(row[1]),
            queue=row[2],
            key=row[3],
            payload=row[4],
            headers=read_headers(row[5]),
            priority=row[6],
            attempts=row[7],
            deliveries=row[8],
            created=_moment(row[9]).timestamp(),
            first_attempt=None if row[10] is None else _moment(row[10]).timestamp(),
            due=_moment(row[11]).timestamp(),
            token=token,
            claimed=_moment(row[13]).timestamp(),
            suspect=token == suspect,
        )

    def survey(self, queues: Sequence[str]) -> Statement:
        paused = "0"
        if self.tables.queues is not None:
            paused = f"""EXISTS (SELECT 1 FROM {self.tables.sql(self.tables.queues)} AS control
                                 WHERE control.queue = band.queue AND control.paused_at IS NOT NULL)"""
        highest = f"""SELECT max(message.priority) FROM {self.outbox} AS message
                      WHERE message.failure_reason IS NULL AND message.key IS NULL"""
        keyed = f"""EXISTS (SELECT 1 FROM {self.outbox} AS message
                            WHERE message.queue = band.queue AND message.key IS NOT NULL
                              AND message.failure_reason IS NULL)"""
        return Statement(
            f"""WITH RECURSIVE band (queue, priority) AS (
                    SELECT wanted.value, ({highest} AND message.queue = wanted.value)
                    FROM json_each(:queues) AS wanted
                    UNION ALL
                    SELECT band.queue, ({highest} AND message.queue = band.queue AND message.priority < band.priority)
                    FROM band
                    WHERE band.priority IS NOT NULL
                )
                SELECT band.queue, band.priority, (
                    SELECT (julianday(message.next_attempt_at) - julianday({NOW})) * 86400.0
                    FROM {self.outbox} AS message
                    WHERE message.queue = band.queue AND message.priority = band.priority
                      AND message.failure_reason IS NULL AND message.key IS NULL AND message.acquired_token IS NULL
                      AND message.next_attempt_at > {_in("-1")}
                    ORDER BY message.next_attempt_at, message.id
                    LIMIT 1
                ), band.priority IS NULL AND {paused}, band.priority IS NULL AND {keyed}
                FROM band""",
            {"queues": json.dumps(list(queues))},
        )

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> Statement:
        return Statement(
            f"""UPDATE {self.outbox} SET leased_until = {_in(":lease")}
                WHERE {_IS_OURS}
                RETURNING id""",
            {"held": _held(deliveries), "lease": lease},
        )

    def ours(self, deliveries: Sequence[Delivery]) -> Statement:
        return Statement(
            f"""SELECT id FROM {self.outbox}
                WHERE {_IS_OURS}""",
            {"held": _held(deliveries)},
        )

    def begin(self, delivery: Delivery) -> Statement:
        return Statement(
            f"""UPDATE {self.outbox} SET deliveries_count = :deliveries + 1
                WHERE id = :id AND acquired_token = :token AND leased_until IS NOT NULL
                RETURNING id""",
            {"id": delivery.id, "token": delivery.token.hex, "deliveries": delivery.deliveries},
        )

    # No statement of SQLite's both deletes and inserts, so the dead are copied first and go with the acked.
    def settle(self, settlements: Settlements, *, worker: str) -> Sequence[Statement]:
        statements = []
        gone = list(settlements.acked)
        if settlements.parked:
            statements.append(Statement(self._park, {"held": _deaths(settlements.parked)}))
        if settlements.dead:
            statements.append(Statement(self._copy_dead, {"held": _deaths(settlements.dead), "worker": worker}))
            gone += [delivery for delivery, _ in settlements.dead]
        if settlements.acked and self.tables.archive is not None:
            statements.append(Statement(self._copy_done, {"held": _held(settlements.acked)}))
        if gone:
            statements.append(
                Statement(
                    f"DELETE FROM {self.outbox} WHERE {_IS_OURS} RETURNING id",
                    {"held": _held(gone)},
                )
            )
        if settlements.moved:
            statements.append(Statement(self._move, {"held": _moves(settlements.moved)}))
        return statements

    @property
    def _copy_done(self) -> str:
        columns = (
            "message_id, queue, key, payload, headers, priority, timer_id, created_at, deliveries_count, "
            "attempts_count, first_attempt_at"
        )
        return f"""INSERT INTO {self.tables.sql(self.tables.archive or "")} ({columns}, last_attempt_at)
            SELECT {columns}, {NOW} FROM {self.outbox} WHERE {_IS_OURS}"""

    @property
    def _copy_dead(self) -> str:
        columns = "message_id, queue, key, payload, headers, priority, timer_id, created_at"
        return f"""INSERT INTO {self.tables.sql(self.tables.dead_letters or "")}
                ({columns}, deliveries_count, attempts_count, first_attempt_at, last_attempt_at,
                 failure_reason, last_exception, worker)
            SELECT {columns}, deliveries_count + held.started, attempts_count + held.failed,
                   coalesce(first_attempt_at, {NOW}), {NOW}, held.reason, held.error, :worker
            FROM ({_DEATHS}) AS held JOIN {self.outbox} AS message
              ON {_IS_HELD}"""

    @property
    def _park(self) -> str:
        return f"""UPDATE {self.outbox} AS message
            SET acquired_token = NULL, leased_until = NULL, held_key = CASE WHEN held.halts THEN message.key END,
                failure_reason = held.reason, last_exception = held.error,
                attempts_count = message.attempts_count + held.failed,
                deliveries_count = message.deliveries_count + held.started,
                first_attempt_at = coalesce(message.first_attempt_at, {NOW}), last_attempt_at = {NOW}
            FROM ({_DEATHS}) AS held
            WHERE {_IS_HELD}
            RETURNING id"""

    @property
    def _move(self) -> str:
        return f"""UPDATE {self.outbox} AS message
            SET acquired_token = CASE WHEN held.suspect THEN message.acquired_token END,
                leased_until = NULL,
                held_key = NULL,
                next_attempt_at = CASE WHEN held.delay IS NULL THEN message.next_attempt_at
                                       ELSE {_in("held.delay")} END,
                attempts_count = message.attempts_count + held.failed,
                deliveries_count = message.deliveries_count + held.started,
                first_attempt_at = CASE WHEN held.failed = 0 THEN message.first_attempt_at
                                        ELSE coalesce(message.first_attempt_at, {NOW}) END,
                last_attempt_at = CASE WHEN held.failed = 0 THEN message.last_attempt_at ELSE {NOW} END
            FROM (SELECT json_extract(value, '$[0]') AS held_id, json_extract(value, '$[1]') AS held_token,
                         json_extract(value, '$[2]') AS delay, json_extract(value, '$[3]') AS failed,
                         json_extract(value, '$[4]') AS started, json_extract(value, '$[5]') AS suspect
                  FROM json_each(:held)) AS held
            WHERE {_IS_HELD}
            RETURNING id"""

    # Operating

    def fetch_unprocessed(self, queue: str | None, limit: int) -> Statement:
        return Statement(
            f"""{self._pending}
                WHERE :queue IS NULL OR queue = :queue
                ORDER BY id
                LIMIT :limit""",
            {"queue": queue, "limit": limit},
        )

    def find_unprocessed(self, id: int | UUID) -> Statement:
        where, parameters = self.identified(id)
        return Statement(f"{self._pending} WHERE {where} AND failure_reason IS NULL", parameters)

    @property
    def _pending(self) -> str:
        return f"""SELECT id, message_id, queue, key, payload, headers, priority, timer_id, attempts_count,
                          deliveries_count, created_at, next_attempt_at, coalesce(leased_until > {NOW}, 0), failure_reason
                   FROM {self.outbox}"""

    def identified(self, id: int | UUID) -> tuple[str, dict[str, object]]:
        if isinstance(id, UUID):
            return "message_id = :message_id", {"message_id": id.hex}
        return "id = :id", {"id": id}

    def read_uuid(self, value: str) -> UUID:
        return UUID(value)

    def read_moment(self, value: str | datetime) -> datetime:
        return _moment(value)

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
        parameters = {**self._filter(queue, key, ids, reason), "limit": -1 if limit is None else limit}
        statements = self._redrive_parked(parameters, dry_run=dry_run)
        if self.tables.dead_letters is None:
            return statements
        return [
            *self._redrive_dead(self.tables.sql(self.tables.dead_letters), parameters, dry_run=dry_run),
            *statements,
        ]

    def _filter(
        self, queue: str | None, key: str | None, ids: Sequence[int] | None, reason: str | None
    ) -> dict[str, object]:
        return {"queue": queue, "key": key, "ids": None if ids is None else json.dumps(list(ids)), "reason": reason}

    def _first_past(self, failed_at: str, of: str) -> str:
        return f"""SELECT id, message_id, queue, (julianday({NOW}) - julianday({failed_at})) * 86400.0
            {of} AND {failed_at} < {_in("-:age")}
            ORDER BY id
            LIMIT 1"""

    _picked = """(:queue IS NULL OR queue = :queue) AND (:key IS NULL OR key = :key)
              AND (:reason IS NULL OR failure_reason = :reason)"""

    @property
    def _parked(self) -> str:
        """Those among the picked that are dead in the outbox table; *ids* mean them only where there is no other table."""
        if self.tables.dead_letters is None:
            which = "failure_reason IS NOT NULL AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))"
        else:
            which = "failure_reason IS NOT NULL AND held_key IS NOT NULL AND :ids IS NULL"
        return f"FROM {self.outbox} WHERE {which} AND {self._picked}"

    def _redrive_parked(self, parameters: dict[str, object], *, dry_run: bool) -> list[Statement]:
        picked = f"SELECT id {self._parked} ORDER BY id LIMIT :limit"
        if dry_run:
            return [Statement(f"SELECT count(*) FROM ({picked})", parameters)]
        change = f"""UPDATE {self.outbox}
            SET failure_reason = NULL, last_exception = NULL, held_key = NULL, timer_id = NULL, attempts_count = 0,
                deliveries_count = 0, first_attempt_at = NULL, last_attempt_at = NULL, next_attempt_at = {NOW}
            WHERE id IN ({picked})"""
        return [Statement(change, parameters), _CHANGES]

    def _unparked(self, table: str) -> str:
        """Those among the picked that are in the table of the dead letters; one whose message is live stays there."""
        return f"""FROM {table} AS dead
            WHERE NOT EXISTS (SELECT 1 FROM {self.outbox} AS live WHERE live.message_id = dead.message_id)
              AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
              AND {self._picked}"""

    def _redrive_dead(self, table: str, parameters: dict[str, object], *, dry_run: bool) -> list[Statement]:
        picked = f"""SELECT id, message_id {self._unparked(table)}
            ORDER BY id
            LIMIT CASE WHEN :limit < 0 THEN -1 ELSE max(0, :limit - (SELECT count(*) {self._parked})) END"""
        if dry_run:
            return [Statement(f"SELECT count(DISTINCT message_id) FROM ({picked})", parameters)]
        oldest = f"SELECT min(id) FROM ({picked}) GROUP BY message_id"
        columns = "message_id, queue, key, payload, headers, priority, created_at"
        # What is copied is marked first, because once it is live it would not be picked again.
        mark = f"UPDATE {table} SET failure_reason = 'redriven' WHERE id IN ({oldest})"
        copy = f"""INSERT INTO {self.outbox} ({columns}, next_attempt_at)
            SELECT {columns}, {NOW} FROM {table} WHERE failure_reason = 'redriven' ORDER BY id"""
        remove = f"DELETE FROM {table} WHERE failure_reason = 'redriven'"
        return [Statement(mark, parameters), Statement(copy, {}), Statement(remove, {}), _CHANGES]

    def release_key(self, queue: str, key: str) -> Sequence[Statement]:
        halting = "queue = :queue AND held_key = :key AND failure_reason IS NOT NULL"
        parameters = {"queue": queue, "key": key}
        if self.tables.dead_letters is None:
            return [Statement(f"UPDATE {self.outbox} SET held_key = NULL WHERE {halting}", parameters), _CHANGES]
        history = """message_id, queue, key, payload, headers, priority, timer_id, created_at, deliveries_count,
                     attempts_count, first_attempt_at, last_attempt_at, failure_reason, last_exception"""
        copy = f"""INSERT INTO {self.tables.sql(self.tables.dead_letters)} ({history}, failed_at)
            SELECT {history}, last_attempt_at FROM {self.outbox} WHERE {halting}"""
        return [
            Statement(copy, parameters),
            Statement(f"DELETE FROM {self.outbox} WHERE {halting}", parameters),
            _CHANGES,
        ]

    def purge_dead_letters(self, older_than: timedelta, queue: str | None, limit: int) -> Statement:
        table = self.tables.need("purge_dead_letters", "dead_letters")
        return Statement(
            f"""DELETE FROM {table} WHERE id IN (
                    SELECT id FROM {table}
                    WHERE failed_at < {_in(":age")} AND (:queue IS NULL OR queue = :queue)
                    ORDER BY failed_at
                    LIMIT :limit)
                RETURNING id""",
            {"age": -older_than.total_seconds(), "queue": queue, "limit": limit},
        )

    def stats(self) -> Statement:
        ready = f"failure_reason IS NULL AND next_attempt_at <= {NOW} AND NOT leased"
        return Statement(
            f"""SELECT queue, sum({ready}), sum(failure_reason IS NULL AND next_attempt_at > {NOW} AND NOT leased),
                       sum(leased), sum(failure_reason IS NOT NULL),
                       (julianday({NOW}) - julianday(min(CASE WHEN {ready} THEN next_attempt_at END))) * 86400.0
                FROM (SELECT queue, failure_reason, next_attempt_at, coalesce(leased_until > {NOW}, 0) AS leased
                      FROM {self.outbox})
                GROUP BY queue""",
            {},
        )

    def blocked_keys(self) -> Statement:
        return Statement(
            f"""SELECT queue, count(*) FROM (
                    SELECT queue, held_key FROM {self.outbox} WHERE held_key IS NOT NULL AND failure_reason IS NOT NULL
                    UNION
                    SELECT queue, key FROM (
                        SELECT queue, key, next_attempt_at, attempts_count,
                               row_number() OVER (PARTITION BY queue, key ORDER BY id) AS place,
                               count(*) OVER (PARTITION BY queue, key) AS length
                        FROM {self.outbox}
                        WHERE key IS NOT NULL AND failure_reason IS NULL
                    )
                    WHERE place = 1 AND length > 1 AND attempts_count > 0 AND next_attempt_at > {NOW}
                )
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
        return Statement(
            f"""INSERT INTO {table} (queue, paused_at) VALUES (:queue, {NOW if paused else "NULL"})
                ON CONFLICT (queue) DO UPDATE SET paused_at =
                    CASE WHEN excluded.paused_at IS NULL THEN NULL
                         ELSE coalesce({table}.paused_at, excluded.paused_at) END""",
            {"queue": queue},
        )

    def purge_inbox(self, older_than: timedelta, limit: int) -> Statement:
        table = self.tables.need("purge_inbox", "inbox")
        return Statement(
            f"""DELETE FROM {table} WHERE id IN (
                    SELECT id FROM {table} WHERE received_at < {_in(":age")} ORDER BY received_at LIMIT :limit)
                RETURNING id""",
            {"age": -older_than.total_seconds(), "limit": limit},
        )

    # Drift

    def catalogue(self, table: str) -> Sequence[Statement]:
        return [
            Statement(f"SELECT name, type, \"notnull\", dflt_value FROM pragma_table_info('{table}')", {}),
            Statement(
                f"""SELECT list."unique",
                          (SELECT group_concat(name, ',') FROM (
                              SELECT name FROM pragma_index_info(list.name) ORDER BY seqno)),
                          coalesce((SELECT sql FROM sqlite_master WHERE name = list.name), '')
                   FROM pragma_index_list('{table}') AS list""",
                {},
            ),
        ]

    def read_catalogue(self, table: str, answers: Sequence[Sequence[Row]]) -> Sequence[Difference]:
        columns, indexes = answers
        if not columns:
            return [Difference(f"table {table} does not exist", fatal=True, missing_table=True)]
        return compare(
            table,
            self.tables.described()[table],
            [
                LiveColumn(name, _known(kind), not not_null, default is not None)
                for name, kind, not_null, default in columns
            ],
            [
                LiveIndex(tuple(names.split(",")), bool(unique), sql.partition("WHERE ")[2])
                for unique, names, sql in indexes
            ],
            type_of,
        )


_HELD = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:held)"
# Whoever gives a suspect back leaves its token there, for the next worker to know, but no lease.
_IS_OURS = f"(id, acquired_token) IN ({_HELD}) AND leased_until IS NOT NULL"
_IS_HELD = "message.id = held.held_id AND message.acquired_token = held.held_token AND message.leased_until IS NOT NULL"
_DEATHS = """SELECT json_extract(value, '$[0]') AS held_id, json_extract(value, '$[1]') AS held_token,
                    json_extract(value, '$[2]') AS reason, json_extract(value, '$[3]') AS error,
                    json_extract(value, '$[4]') AS failed, json_extract(value, '$[5]') AS started,
                    json_extract(value, '$[6]') AS halts
             FROM json_each(:held)"""

_TYPES = {
    "identity": "integer",
    "smallint": "smallint",
    "integer": "integer",
    "string": "varchar",
    "text": "text",
    "uuid": "char(32)",
    "bytes": "blob",
    "json": "json",
    "timestamp": "datetime",
}


def type_of(column: Column) -> str:
    """A column's type as `read_catalogue` compares it, which is without a length."""
    return _TYPES[column.kind]


def _known(kind: str) -> str:
    """A declared type as this module calls it: SQLite keeps whatever it was told."""
    kind = kind.lower()
    return "varchar" if kind.startswith("varchar") else kind


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _moment(value: str | datetime) -> datetime:
    """A stored time, which Django's connections have parsed already."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC)


def _held(deliveries: Sequence[Delivery]) -> str:
    return json.dumps([[delivery.id, delivery.token.hex] for delivery in deliveries])


def _deaths(dead: Sequence[tuple[Delivery, DeadLetter]]) -> str:
    return json.dumps(
        [
            [
                delivery.id,
                delivery.token.hex,
                outcome.reason,
                outcome.error,
                *counts(delivery, outcome),
                outcome.halts,
            ]
            for delivery, outcome in dead
        ]
    )


def _moves(moved: Sequence[tuple[Delivery, Retry | Release]]) -> str:
    return json.dumps(
        [
            [
                delivery.id,
                delivery.token.hex,
                outcome.delay if isinstance(outcome, Retry) else None,
                *counts(delivery, outcome),
                isinstance(outcome, Release) and delivery.still_suspect,
            ]
            for delivery, outcome in moved
        ]
    )
