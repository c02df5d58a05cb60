"""What `make bench` compares: chapters of runs, the ratios between them, and what each ratio is meant to be."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.bench import Run


@dataclass(frozen=True, slots=True)
class Ratio:
    """*over* / *under*, each a run's label and a figure's name; *least* or *most*: the target, None where there is none."""

    text: str
    over: tuple[str, str]
    under: tuple[str, str]
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure that has a target of its own, in the figure's unit."""

    text: str
    figure: tuple[str, str]
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Chapter:
    """One table. *messages*: how many each run is given; *smoke*: how many to see that it works."""

    name: str
    title: str
    runs: Sequence[Run]
    ratios: Sequence[Ratio | Limit] = ()
    messages: int = 20_000
    smoke: int = 300


RATE, CPU, ADDS = "msg/s", "CPU µs/msg", "adds µs"

OURS, BEST = "shared-outbox, defaults", "shared-outbox, uvloop, no logger"
CORE = "shared-outbox's core alone"
RAW = "raw asyncpg loop, batches of 500"
FSO, FSO_BEST = "faststream-outbox, defaults", "faststream-outbox, best"
PGQ, PGQ_BEST = "PgQueuer, defaults", "PgQueuer, best"
PRC, PRC_BEST = "procrastinate, defaults", "procrastinate, best"
DTB = "django-tasks-db, db_worker"
NATS, NATS_BEST = "FastStream on JetStream, defaults", "FastStream on JetStream, best"
REDIS, REDIS_BEST = "FastStream on Redis streams, defaults", "FastStream on Redis streams, best"

BEST_OPTION = {"best": 1}


def _both(default: str, best: str, system: str, workload: str, share: float = 1.0) -> tuple[Run, Run]:
    return Run(default, system, workload, share=share), Run(best, system, workload, BEST_OPTION, share)


PUBLISH_ONE = Chapter(
    "publish-one",
    "W1: what a message adds to a transaction with one domain row",
    [
        Run("shared-outbox, AsyncSession", "ours", "publish_one"),
        Run("faststream-outbox, AsyncSession", "faststream_outbox", "publish_one"),
        Run("PgQueuer, asyncpg", "pgqueuer", "publish_one"),
        Run("procrastinate, psycopg", "procrastinate", "publish_one"),
    ],
    [
        Ratio(
            "ours / the same INSERT by hand",
            ("shared-outbox, AsyncSession", ADDS),
            ("shared-outbox, AsyncSession", "by hand adds µs"),
            most=1.25,
        ),
        Ratio(
            "faststream-outbox / ours",
            ("faststream-outbox, AsyncSession", ADDS),
            ("shared-outbox, AsyncSession", ADDS),
            least=1.5,
        ),
        Ratio("PgQueuer / ours", ("PgQueuer, asyncpg", ADDS), ("shared-outbox, AsyncSession", ADDS), least=1.0),
        Ratio(
            "procrastinate / ours", ("procrastinate, psycopg", ADDS), ("shared-outbox, AsyncSession", ADDS), least=1.0
        ),
    ],
    messages=1_000,
    smoke=100,
)

PUBLISH_BATCH = Chapter(
    "publish-batch",
    "W2: publish 1,000 messages in a transaction",
    [
        Run("raw INSERT … SELECT unnest", "raw", "publish_batch"),
        Run("shared-outbox", "ours", "publish_batch"),
        Run("faststream-outbox", "faststream_outbox", "publish_batch"),
        Run("PgQueuer", "pgqueuer", "publish_batch"),
        Run("procrastinate", "procrastinate", "publish_batch", share=0.2),
    ],
    [
        Ratio("ours / raw", ("shared-outbox", RATE), ("raw INSERT … SELECT unnest", RATE), least=0.7),
        *(
            Ratio(f"ours / {peer}", ("shared-outbox", RATE), (peer, RATE), least=1.0)
            for peer in ("faststream-outbox", "PgQueuer", "procrastinate")
        ),
    ],
)

DRAIN = Chapter(
    "drain",
    "W3: drain by one process, handler(body: dict)",
    [
        Run(RAW, "raw", "drain"),
        Run(CORE, "core", "drain"),
        *_both(OURS, BEST, "ours", "drain"),
        *_both(FSO, FSO_BEST, "faststream_outbox", "drain", share=0.25),
        *_both(PGQ, PGQ_BEST, "pgqueuer", "drain"),
        *_both(PRC, PRC_BEST, "procrastinate", "drain", share=0.05),
        *_both(NATS, NATS_BEST, "jetstream", "drain", share=0.5),
        *_both(REDIS, REDIS_BEST, "redis_streams", "drain", share=0.25),
    ],
    [
        Ratio("defaults / faststream-outbox's", (OURS, RATE), (FSO, RATE), least=12),
        Ratio("defaults / PgQueuer's", (OURS, RATE), (PGQ, RATE), least=3),
        Ratio("defaults / procrastinate's", (OURS, RATE), (PRC, RATE), least=25),
        Ratio("defaults / JetStream's", (OURS, RATE), (NATS, RATE), least=1),
        Ratio("defaults / Redis streams'", (OURS, RATE), (REDIS, RATE), least=1),
        Ratio("best / faststream-outbox's best", (BEST, RATE), (FSO_BEST, RATE), least=2),
        Ratio("best / PgQueuer's best", (BEST, RATE), (PGQ_BEST, RATE), least=1),
        Ratio("best / procrastinate's best", (BEST, RATE), (PRC_BEST, RATE), least=1),
        Ratio("best / JetStream's best", (BEST, RATE), (NATS_BEST, RATE), least=1),
        Ratio("best / Redis streams' best", (BEST, RATE), (REDIS_BEST, RATE), least=1),
        Ratio("defaults / raw loop", (OURS, RATE), (RAW, RATE)),
        Limit("worker's CPU a message, µs", (OURS, CPU), most=60),
        Limit("the core's CPU a message, µs", (CORE, CPU), most=15),
    ],
)

_PROCESSES = {count: f"{count} process{'es' if count > 1 else ''}" for count in (1, 2, 4)}
PROCESSES = Chapter(
    "processes",
    "W4: the same with more processes; a handler that does nothing, and one that computes for 0.3 ms",
    [
        *(Run(label, "ours", "drain_processes", {"processes": n}) for n, label in _PROCESSES.items()),
        *(
            Run(f"{label}, 0.3 ms", "ours", "drain_processes", {"processes": n, "computing": 300}, share=0.5)
            for n, label in _PROCESSES.items()
        ),
    ],
    [
        Ratio("two / one", ("2 processes", RATE), ("1 process", RATE), least=1.0),
        Ratio("four / one", ("4 processes", RATE), ("1 process", RATE), least=1.0),
        Ratio("two / one, computing", ("2 processes, 0.3 ms", RATE), ("1 process, 0.3 ms", RATE), least=1.7),
        Ratio("four / one, computing", ("4 processes, 0.3 ms", RATE), ("1 process, 0.3 ms", RATE), least=1.0),
    ],
)

LATENCY = Chapter(
    "latency",
    "W5: idle latency, COMMIT sent to handler started; and how late scheduled messages are",
    [
        Run("asyncpg", "ours", "idle_latency"),
        Run("psycopg", "ours", "idle_latency", {"driver": "psycopg"}),
        Run("scheduled", "ours", "scheduled", share=0.5),
    ],
    [
        *(
            Limit(f"{driver}, {share} ms", (driver, f"{share} ms"), most=most)
            for driver in ("asyncpg", "psycopg")
            for share, most in (("p50", 3), ("p99", 15))
        ),
        Limit("scheduled, p99 ms late", ("scheduled", "p99 ms"), most=50),
    ],
    messages=200,
    smoke=20,
)

_BACKLOGS = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}
BACKLOG = Chapter(
    "backlog",
    "W6: the rate of 20,000 messages against a backlog, and while a transaction holds back vacuum",
    [
        *(Run(f"backlog of {name}", "ours", "backlog", {"rows": rows}) for name, rows in _BACKLOGS.items()),
        Run("before the old transaction", "ours", "pinned", {"seconds": 0}),
        Run("in its sixtieth second", "ours", "pinned", {"seconds": 60}),
    ],
    [
        Ratio("1M / 1k", ("backlog of 1M", RATE), ("backlog of 1k", RATE), least=0.85),
        Ratio(
            "vacuum held back / not", ("in its sixtieth second", RATE), ("before the old transaction", RATE), least=0.5
        ),
    ],
)

TOGETHER = Chapter(
    "together",
    "W7: a publisher and a worker for 60 s, after autovacuum has been there; one transaction a message",
    [
        Run("publisher alone", "ours", "together", {"worker": 0}),
        Run("publisher and worker", "ours", "together", {"worker": 1}),
    ],
    [
        Ratio(
            "publisher with worker / alone", ("publisher and worker", "tx/s"), ("publisher alone", "tx/s"), least=0.8
        ),
        Ratio(
            "largest size / after the first autovacuum",
            ("publisher and worker", "largest MB"),
            ("publisher and worker", "MB at first"),
            most=2.0,
        ),
    ],
    messages=60,
    smoke=4,
)

_VARIANTS = {"none": "no notification at all", "ours": "shared-outbox", "naive": "pg_notify in every transaction"}
PUBLISHERS = [
    Chapter(
        f"publishers-{clients}",
        f"W8: {clients} publishers, commits of about 2.5 ms, worker running",
        [
            Run(label, "ours", "concurrent_publishers", {"clients": clients, "variant": variant})
            for variant, label in _VARIANTS.items()
        ],
        [Ratio("ours / none", (_VARIANTS["ours"], "tx/s"), (_VARIANTS["none"], "tx/s"), least=0.9)],
        messages=messages,
        smoke=160,
    )
    for clients, messages in ((1, 500), (4, 2_000), (16, 6_000))
]

FASTAPI = Chapter(
    "fastapi",
    "FastAPI: drain, one process, defaults",
    [
        Run("OutboxBroker, handler(body: dict)", "ours", "drain"),
        Run("OutboxRouter, the same handler", "ours_fastapi", "drain"),
        Run("  and message, broker, logger", "ours_fastapi", "drain", {"handler": "contexts"}),
        Run("  or a dependency with yield", "ours_fastapi", "drain", {"handler": "dependency"}),
    ],
    [
        Ratio(
            "OutboxRouter / OutboxBroker, CPU",
            ("OutboxRouter, the same handler", CPU),
            ("OutboxBroker, handler(body: dict)", CPU),
            most=1.3,
        )
    ],
)

DJANGO_PUBLISH = Chapter(
    "django-publish",
    "Django: publish one, inside atomic()",
    [Run("shared-outbox, publish()", "ours_django", "publish_one")],
    [
        Ratio(
            "ours / cursor.execute of the same INSERT",
            ("shared-outbox, publish()", "ours µs"),
            ("shared-outbox, publish()", "by hand µs"),
            most=1.6,
        )
    ],
    messages=4_000,
    smoke=200,
)

DJANGO = Chapter(
    "django",
    "W9: Django, drain by one process, defaults",
    [
        Run("shared-outbox, sync handler", "ours_django", "drain"),
        Run("shared-outbox, async handler", "ours_django", "drain_async"),
        Run(DTB, "django_tasks_db", "drain", share=0.05),
    ],
    [
        Ratio("sync handler / django-tasks-db", ("shared-outbox, sync handler", RATE), (DTB, RATE), least=8),
        Ratio("async handler / django-tasks-db", ("shared-outbox, async handler", RATE), (DTB, RATE), least=40),
    ],
    messages=10_000,
)

BATCH = Chapter(
    "batch",
    "W10: batch subscriber, handler(bodies: list[dict])",
    [
        Run(RAW, "raw", "drain"),
        Run("shared-outbox, batches of 100", "ours", "drain", {"batch": 100}),
        Run("shared-outbox, batches of 500", "ours", "drain", {"batch": 500}),
    ],
    [
        Ratio("100 / raw loop", ("shared-outbox, batches of 100", RATE), (RAW, RATE), least=0.5),
        Ratio("500 / raw loop", ("shared-outbox, batches of 500", RATE), (RAW, RATE), least=0.5),
    ],
)

_UNKEYED, _FEW = "without keys", "50 keys"
_ONE_BLOCKED, _MANY_BLOCKED = "50,000 of one blocked key in front", "50,000 of 5,000 blocked keys"
_KEYED = {"5,000 keys": (5_000, 0.5), _FEW: (50, 0.3), "1 key": (1, 0.1)}
CLAIMED = "claimed/s"
KEYS = Chapter(
    "keys",
    "Keys: claims of up to 500 for one slot, and acks",
    [
        Run(_UNKEYED, "ours_keys", "drain"),
        *(Run(label, "ours_keys", "drain", {"keys": keys}) for label, (keys, _) in _KEYED.items()),
        Run(_ONE_BLOCKED, "ours_keys", "drain", {"keys": 50, "blocked": 50_000}),
        Run(_MANY_BLOCKED, "ours_keys", "drain", {"keys": 50, "blocked": 50_000, "blocked_keys": 5_000}),
    ],
    [
        *(
            Ratio(f"{label} / without, claims alone", (label, CLAIMED), (_UNKEYED, CLAIMED), least=least)
            for label, (_, least) in _KEYED.items()
        ),
        *(
            Ratio(f"{name} blocked / 50 keys", (label, CLAIMED), (_FEW, CLAIMED), least=0.5)
            for name, label in (("one key", _ONE_BLOCKED), ("5,000 keys", _MANY_BLOCKED))
        ),
    ],
)

MEMORY = Chapter(
    "memory",
    "An idle worker's memory",
    [Run("shared-outbox, defaults", "ours", "memory")],
    [Limit("resident, MB", ("shared-outbox, defaults", "resident MB"), most=90)],
)

CHAPTERS = {
    chapter.name: chapter
    for chapter in [
        PUBLISH_ONE,
        PUBLISH_BATCH,
        DRAIN,
        PROCESSES,
        LATENCY,
        BACKLOG,
        TOGETHER,
        *PUBLISHERS,
        DJANGO_PUBLISH,
        DJANGO,
        FASTAPI,
        BATCH,
        KEYS,
        MEMORY,
    ]
}
