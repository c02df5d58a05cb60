"""FastStream's README, line by line of the checklist, with Kafka's broker replaced by an outbox's and nothing else.

The service under test is the README's, written to a file as the README says and run by its command where the line is about
the command.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel
from sqlalchemy import MetaData, create_engine, make_url

from outbox_sqlalchemy import TestOutboxBroker, make_outbox_tables
from tests.places import Place, running, until

BASIC = """
from pydantic import BaseModel, Field, NonNegativeFloat

from faststream import FastStream, Logger
from outbox_sqlalchemy import OutboxBroker
from sqlalchemy.ext.asyncio import create_async_engine


class DataBasic(BaseModel):
    data: NonNegativeFloat = Field(
        ..., examples=[0.5], description="Float data example"
    )


broker = OutboxBroker(create_async_engine("sqlite+aiosqlite:///outbox.db"))
app = FastStream(broker)


@broker.publisher("output_data")
@broker.subscriber("input_data")
async def on_input_data(msg: DataBasic, logger: Logger) -> DataBasic:
    logger.info(msg)
    return DataBasic(data=msg.data + 1.0)
"""

COLOUR = re.compile(r"\x1b\[\d+m")  # FastStream colours its levels, whoever reads them
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `basic.py` is, and the database that it names, with its tables."""
    (tmp_path / "basic.py").write_text(BASIC)
    metadata = MetaData()
    make_outbox_tables(metadata)
    engine = create_engine(f"sqlite:///{tmp_path / 'outbox.db'}")
    metadata.create_all(engine)
    engine.dispose()
    return tmp_path


@pytest.fixture
def basic(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The README's module, fresh for each test."""
    monkeypatch.chdir(folder)
    spec = importlib.util.spec_from_file_location("basic", folder / "basic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "basic", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """The database of `basic.py`, seen from outside."""
    place = Place(make_url(f"sqlite:///{folder / 'outbox.db'}"), "aiosqlite")
    yield place
    place.sync_engine.dispose()


async def test_001_1_a_broker_takes_both_decorators_and_moves_a_model_on(basic: ModuleType, place: Place) -> None:
    got: list[float] = []

    @basic.broker.subscriber("output_data")
    async def on_output_data(msg: basic.DataBasic) -> None:  # type: ignore[name-defined]  # of a module made here
        got.append(msg.data)

    async with running(basic.broker):
        await basic.broker.publish(basic.DataBasic(data=0.2), "input_data")
        await until(lambda: (got, place.rows()), ([1.2], []))
    await basic.broker.engine.dispose()


async def test_001_2_a_body_is_validated_and_a_model_is_json(basic: ModuleType, place: Place) -> None:
    async with running(basic.broker):
        await basic.broker.publish({"data": "0.5"}, "input_data")
        await until(lambda: [(row.queue, row.payload) for row in place.rows()], [("output_data", b'{"data":1.5}')])
        await basic.broker.publish({"data": -1}, "input_data")
        await until(lambda: [row.attempts_count for row in place.rows() if row.queue == "input_data"], [1])
    await basic.broker.engine.dispose()

    async with TestOutboxBroker(basic.broker):
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            await basic.broker.publish({"data": -1}, "input_data")
    assert place.rows()[0].headers["content-type"] == "application/json"


def test_001_3_the_command_prints_that_it_starts_what_waits_and_that_it_has_started(folder: Path) -> None:
    with service(folder) as process:
        lines = output_until(process, "started successfully")

    starting, waiting, started = lines
    assert re.search(STAMP + r"INFO +- FastStream app starting\.\.\.$", starting)
    assert re.search(STAMP + r"INFO +- input_data \|            - `OnInputData` waiting for messages$", waiting)
    assert re.search(STAMP + r"INFO +- FastStream app started successfully! To exit, press CTRL\+C$", started)


async def test_001_4_a_chain_runs_in_memory_and_both_handlers_have_a_mock(basic: ModuleType) -> None:
    data = basic.DataBasic

    @basic.broker.subscriber("output_data")
    async def on_output_data(msg: data) -> None:  # type: ignore[valid-type]  # of a module made here
        pass

    async with TestOutboxBroker(basic.broker):
        await basic.broker.publish(data(data=0.2), "input_data")

        basic.on_input_data.mock.assert_called_once_with(dict(data(data=0.2)))
        on_output_data.mock.assert_called_once_with(dict(data(data=1.2)))


async def test_001_4_the_chain_needs_no_database(basic: ModuleType, folder: Path) -> None:
    shutil.move(folder / "outbox.db", folder / "elsewhere.db")

    async with TestOutboxBroker(basic.broker):
        await basic.broker.publish(basic.DataBasic(data=0.2), "input_data")

        basic.on_input_data.mock.assert_called_once_with({"data": 0.2})
    assert not (folder / "outbox.db").exists()


async def test_001_5_a_subscriber_is_registered_inside_the_test(basic: ModuleType) -> None:
    class Output(BaseModel):
        data: float

    got: list[Output] = []

    @basic.broker.subscriber("output_data")
    async def on_output_data(msg: Output) -> None:
        got.append(msg)

    async with TestOutboxBroker(basic.broker):
        await basic.broker.publish(basic.DataBasic(data=1), "input_data")

    assert got == [Output(data=2.0)]


async def test_001_6_the_test_broker_publishes_a_model_to_a_queue_named_by_position(basic: ModuleType) -> None:
    async with TestOutboxBroker(basic.broker) as broker:
        assert broker is basic.broker
        await basic.broker.publish(basic.DataBasic(data=0.2), "input_data")

        await basic.on_input_data.assert_called_once_with(basic.DataBasic(data=0.2))


async def test_001_7_a_handler_logs_with_the_brokers_logger_and_ctrl_c_ends_the_service(
    folder: Path, basic: ModuleType, place: Place
) -> None:
    await basic.broker.publish({"data": 0.2}, "input_data")
    await basic.broker.engine.dispose()

    with service(folder) as process:
        (line,) = [one for one in output_until(process, "data=0.2") if "data=0.2" in one]
        await until(lambda: [row.queue for row in place.rows()], ["output_data"])
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        rest = COLOUR.sub("", process.stdout.read()).splitlines()
        assert process.wait(timeout=20) == 0

    message_id = r"[0-9a-f-]{10}"
    assert re.search(STAMP + rf"INFO +- input_data \| {message_id} - data=0\.2$", line)
    assert re.search(STAMP + r"INFO +- FastStream app shutting down\.\.\.$", rest[-2])
    assert re.search(STAMP + r"INFO +- FastStream app shut down gracefully\.$", rest[-1])
    assert [row.leased_until for row in place.rows()] == [None]


@contextmanager
def service(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`faststream run basic:app` in *folder*, killed at the end if it is still there, and after a minute in any case."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "faststream", "run", "basic:app"],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = threading.Timer(60, process.kill)
    deadline.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        deadline.cancel()


def output_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines that it prints, up to the one that contains *text*."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(COLOUR.sub("", line).rstrip())
        if text in line:
            return lines
    raise AssertionError(f"{text!r} is not in the output:\n" + "\n".join(lines))
