"""Links and stores as such: connections of a worker's own, names without credentials, and tables that fit."""

import pytest

from tests.contract.harness import Outbox


async def test_a_link_answers(outbox: Outbox) -> None:
    await (await outbox.link()).ping()


async def test_a_link_can_be_closed_twice(outbox: Outbox) -> None:
    link = await outbox.link()

    await link.close()
    await link.close()


async def test_the_tables_fit_their_description(outbox: Outbox) -> None:
    assert await outbox.store.differences() == {}


async def test_the_outbox_table_alone_fits_its_description(parking_outbox: Outbox) -> None:
    assert await parking_outbox.store.differences() == {}


async def test_the_name_says_where_without_credentials(outbox: Outbox) -> None:
    assert "postgres@" not in outbox.store.name
    assert outbox.store.name == "memory" or outbox.store.name.endswith("/outbox")


@pytest.mark.parametrize("links", [5])
async def test_links_do_not_use_up_the_applications_pool(outbox: Outbox, links: int) -> None:
    for _ in range(links):
        await (await outbox.link()).ping()

    assert await outbox.borrowed() == 0
