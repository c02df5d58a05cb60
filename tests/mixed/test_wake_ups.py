"""A publish of either framework wakes a sleeping worker of the other.

Workers look by themselves every 30 seconds only, so a lost wake-up shows as a timeout.
"""

import pytest
from sqlalchemy import URL

from tests.databases import execute
from tests.mixed.consumers import Consumer
from tests.mixed.place import Shared, until
from tests.mixed.publishers import Publish

pytestmark = pytest.mark.parametrize("shared", ["postgresql"], indirect=True)

SLEEPERS = """SELECT count(*) FROM pg_locks
               WHERE locktype = 'advisory'
                 AND mode = 'ExclusiveLock'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


async def test_a_sleeping_worker_is_woken(
    shared: Shared, publish: Publish, consumer: Consumer, migrated_database: URL
) -> None:
    async with consumer.running(max_fetch_interval=30.0):
        await until(lambda: execute(migrated_database, SLEEPERS), [(1,)])

        await publish()

        await consumer.until_seen(1)
