"""One run of a scenario: workers, shops, strikes; wait until nothing moves any more; judge."""

from pathlib import Path
from time import monotonic
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from tests.crash.campaign.scenario import Scenario
from tests.crash.campaign.site import LOOK, Site
from tests.crash.campaign.verdict import Verdict, judge
from tests.crash.fleet import Worker
from tests.databases import OwnServer


def run(scenario: Scenario, server: OwnServer, folder: Path, *, short: bool, share: float = 1.0) -> Verdict:
    """Run it, or a *share* of it, on *server*, with logs and ledger in *folder*."""
    size = (scenario.short if short else scenario.full).part(share)
    begun = monotonic()
    with Site.of(scenario, size, server, folder) as site:
        for _ in range(size.workers):
            site.hire()
        if not scenario.mortal:
            site.fleet.started()
        shops = [_open_shop(site, **orders) for orders in scenario.shops]
        _strike(site)
        stuck = _wait(site, shops)
        return judge(site, stuck=stuck, seconds=monotonic() - begun, short=short)


def _open_shop(site: Site, *, proxied: bool = False, share: float = 1.0, **orders: Any) -> Worker:
    """*proxied*: its own COMMIT too may be one whose answer is lost. *share*: of the orders of this size."""
    url = make_url(site.workers_url) if proxied else site.fleet.outbox.url
    return site.fleet.run(
        "tests.crash.shop",
        **{
            "url": url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False),
            "ledger": str(site.fleet.ledger_file),
            "orders": round(site.size.orders * share),
            "rate": site.size.rate,
            "keys": site.scenario.keys,
            **orders,
        },
    )


def _strike(site: Site) -> None:
    """Strike as often as ordered, as soon as there is work to be struck."""
    patience = monotonic() + site.size.patience
    while not site.fleet.ledger.handled() and monotonic() < patience:
        site.rest(LOOK)
    strike = site.scenario.strike
    for _ in range(site.size.strikes if strike else 0):
        begun = monotonic()
        strike(site)
        site.strikes.append((begun, monotonic()))
        site.rest(max(0.0, begun + site.size.every - monotonic()))


def _wait(site: Site, shops: list[Worker]) -> set[int]:
    """Wait for the end of everything; the messages of which there is none."""
    moved, state = monotonic(), (-1, -1, -1)
    while monotonic() - moved < site.size.patience:
        site.rest(0.1)
        try:
            live = site.fleet.outbox.live()
        except DBAPIError:  # the strike hits everybody
            continue
        open_shops = [shop for shop in shops if shop.alive]
        if not live and not open_shops and site.all_gone:
            return set()
        now = (live, len(site.fleet.ledger.runs()), len(site.fleet.ledger.published()))
        if now != state:
            moved, state = monotonic(), now
    return site.fleet.outbox.live_numbers()
