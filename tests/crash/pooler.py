"""PgBouncer in transaction mode, with no setting that would make things easier."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection, socket
from typing import Any

import pytest

from tests.crash.fleet import until

INSTALL = "PgBouncer is not installed; apt-get install pgbouncer"


def find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pgbouncer(socket_folder: Path, user: str, folder: Path) -> Iterator[int]:
    """The port on 127.0.0.1 of one that connects as *user* to the PostgreSQL whose socket lies in *socket_folder*.

    Its clients have fewer server connections than they are, so statements of one client do not find those of its last.
    """
    program = find_pgbouncer()
    if program is None:
        raise FileNotFoundError(INSTALL)
    port = _free_port()
    settings, log = folder / "pgbouncer.ini", folder / "pgbouncer.log"
    settings.write_text(f"""
[databases]
* = host={socket_folder} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
""")
    # It does not run as root, and must get at the socket: it becomes whoever PostgreSQL is, who need not find the file.
    owner = socket_folder.stat()
    whose: dict[str, Any] = {}
    if os.geteuid() == 0:
        whose = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    with log.open("wb") as output, settings.open("rb") as text:
        process = subprocess.Popen(
            [program, "-q", "/dev/stdin"], stdin=text, stdout=output, stderr=output, cwd="/", **whose
        )
    try:
        until(lambda: _answers(port), 10, f"PgBouncer answers; it said\n{log.read_text()}")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def needs_pgbouncer() -> None:
    """Skip the test where there is none, but not in CI."""
    if find_pgbouncer() is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)(INSTALL)


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
