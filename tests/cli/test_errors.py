"""An operator's mistakes: one line that says what is wrong, an exit code that says whose move it is, and no traceback."""

import subprocess

import pytest

from outbox_core.cli.main import main
from tests.cli.conftest import Shop

NOBODY = "postgresql://app:canary-password@127.0.0.1:1/shop"


def ends(arguments: list[str]) -> int:
    """With which code the command ends, in this process."""
    try:
        return main(arguments)
    except SystemExit as end:  # argparse's
        return int(str(end.code))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required: COMMAND"),
        (["stat"], 2, "invalid choice: 'stat'"),
        (["stats"], 2, "the following arguments are required: WHERE"),
        (["stats", "nobody"], 2, "must be a URL such as postgresql://host/database, or module:broker, got 'nobody'"),
        (["stats", "nobody:broker"], 2, "cannot import 'nobody:broker': ModuleNotFoundError: No module named 'nobody'"),
        (["stats", "json:nothing"], 2, "cannot import 'json:nothing': AttributeError: "),
        (["stats", "json:dumps"], 2, "'json:dumps' must name an OutboxBroker, or an application or a router with one"),
        (["stats", "json:dumps", "--table", "mail"], 2, "'json:dumps' knows its own tables"),
        (["stats", "oracle://host/db"], 2, "no outbox can be in a 'oracle' database; known are postgres, "),
        (["stats", "postgresql+psycopg2://host/db"], 2, "postgresql+psycopg2 has no asynchronous driver"),
        (["stats", "postgresql://a:canary-password@b@c:port/d"], 2, "the postgresql URL cannot be read"),
        (["stats", NOBODY], 69, "cannot use postgresql://127.0.0.1:1/shop/outbox: "),
        (
            ["stats", NOBODY, "--table", 'x"; DROP TABLE y; --'],
            2,
            "outbox table must be letters, digits and underscores",
        ),
        (["stats", NOBODY, "--table", "app.outbox"], 2, 'pass schema="…" for a table in a schema'),
        (["stats", "sqlite:///no-such-file.db"], 69, "there is no SQLite file 'no-such-file.db'"),
        (["list", NOBODY, "--limit", "0"], 2, "must be a number >= 1, got '0'"),
        (["show", NOBODY, "abc"], 2, "must be the number of a row or the UUID of a message, got 'abc'"),
        (["purge", NOBODY], 2, "the following arguments are required: --older-than"),
        (["purge", NOBODY, "--older-than", "soon"], 2, "must be a time span such as 30d, 12h, 45m or 90 (seconds)"),
        (["pause", NOBODY], 2, "the following arguments are required: queue"),
        (["pause", NOBODY, "a,b"], 2, "must be one queue, got 'a,b'"),
        (["work", NOBODY], 2, "work needs module:broker, since handlers are code; got a URL"),
        (["ddl", "--dialect", "oracle"], 2, "invalid choice: 'oracle'"),
        (["ddl", "--grants"], 2, "--grants needs at least one of --publisher, --worker and --operator"),
        (["ddl", "--publisher", "shop"], 2, "are about --grants, which is not given"),
        (
            ["ddl", "--grants", "--worker", "w", "--dialect", "sqlite"],
            2,
            "--grants is for PostgreSQL; sqlite has no roles",
        ),
        (["ddl", "--table", ""], 2, "outbox table must be letters, digits and underscores"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert ends(arguments) == code

    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True), err
    assert err.splitlines()[-1].startswith("outbox")
    assert "canary-password" not in err


def test_traceback_shows_where_an_error_comes_from() -> None:
    with pytest.raises(Exception, match="there is no SQLite file"):
        main(["stats", "sqlite:///no-such-file.db", "--traceback"])


def test_a_database_without_tables_is_a_misfit(lite_shop: Shop) -> None:
    lite_shop.place.run("DROP TABLE outbox")

    done = lite_shop.run("stats", lite_shop.url)

    assert (done.code, done.out) == (78, "")
    assert done.err == (
        "outbox stats: outbox does not fit this version: no such table: outbox; create or migrate it before publishing\n"
    )


def test_whoever_reads_may_have_seen_enough(lite_shop: Shop) -> None:
    with subprocess.Popen(
        lite_shop.command("ddl"), **lite_shop.process, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0
