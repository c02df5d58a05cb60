"""The app's handlers: each writes down when it begins and ends, and may be told to wait for a file in between."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from outbox_django import broker
from shop.models import Run

PATIENCE = 60.0  # seconds for a test to make the file


@broker.subscriber("orders", lease_ttl_seconds=2.0)
def ship(order: dict[str, Any]) -> None:
    run = Run.objects.create(queue="orders", number=order["number"], process=os.getpid())
    Run.objects.filter(id=run.id).update(beside=Run.objects.filter(ended=False).count())
    wait(order)
    Run.objects.filter(id=run.id).update(ended=True)


@broker.subscriber("mails", lease_ttl_seconds=2.0)
async def send(mail: dict[str, Any]) -> None:
    run = await Run.objects.acreate(queue="mails", number=mail["number"], process=os.getpid())
    await Run.objects.filter(id=run.id).aupdate(beside=await Run.objects.filter(ended=False).acount())
    await asyncio.sleep(mail.get("seconds", 0))
    block_once(mail)
    await Run.objects.filter(id=run.id).aupdate(ended=True)


def block_once(mail: dict[str, Any]) -> None:
    """Block whoever calls, for ever, unless the file that *mail* names says that somebody did before."""
    path = mail.get("blocks_once")
    if path is not None and not Path(path).exists():
        Path(path).touch()
        time.sleep(3_600)


def wait(order: dict[str, Any]) -> None:
    """For the seconds that *order* says, or for the file that it names."""
    time.sleep(order.get("seconds", 0))
    gate = order.get("gate")
    deadline = time.monotonic() + PATIENCE
    while gate is not None and not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
