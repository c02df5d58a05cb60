"""Conflicts that PostgreSQL itself reports, where and how often a test says.

A trigger raises them with the SQLSTATE of the real ones. It counts in a sequence, which no rollback turns back.
"""

from typing import Literal, TypeAlias

from sqlalchemy import URL

from tests.databases import execute

Point: TypeAlias = Literal["a statement of the handler's", "our delete", "the commit"]
POINTS: tuple[Point, ...] = ("a statement of the handler's", "our delete", "the commit")
STATES = {"40001": "could not serialize access", "40P01": "deadlock detected"}

_WHERE: dict[Point, str] = {
    "a statement of the handler's": "TRIGGER conflicting BEFORE INSERT ON effects FOR EACH ROW",
    "our delete": "TRIGGER conflicting BEFORE DELETE ON outbox FOR EACH ROW",
    "the commit": "CONSTRAINT TRIGGER conflicting AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
}


def make_effects(url: URL) -> None:
    """A table of the handler's, in which every effect is a row, and a second effect a second row."""
    execute(url, "CREATE TABLE effects (id serial PRIMARY KEY, n integer NOT NULL)")


def effects(url: URL) -> list[object]:
    return [n for (n,) in execute(url, "SELECT n FROM effects ORDER BY n")]


def conflict(url: URL, point: Point, *, times: int, state: str = "40001") -> None:
    """Let the first *times* transactions that come to *point* fail there."""
    execute(url, "CREATE SEQUENCE conflicts")
    execute(
        url,
        f"""CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('conflicts') <= {times} THEN RAISE EXCEPTION '{STATES[state]}' USING ERRCODE = '{state}'; END IF;
            RETURN COALESCE(NEW, OLD); END $$""",
    )
    execute(url, f"CREATE {_WHERE[point]} EXECUTE FUNCTION conflict()")


def conflicts(url: URL) -> int:
    """How often the point was reached."""
    return int(str(execute(url, "SELECT last_value FROM conflicts")[0][0]))
