"""Names: identifiers, indexes, channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_core.errors import InvalidName, MissingTable, WrongType
from outbox_core.schema import (
    ARCHIVE,
    DEAD_LETTERS,
    MAX_IDENTIFIER,
    OUTBOX,
    QUEUES,
    Index,
    Tables,
    TableSpec,
    channel_name,
    check_identifier,
    object_name,
)

identifiers = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,62}", fullmatch=True)
SUFFIXES = [index.suffix for spec in (OUTBOX, DEAD_LETTERS, ARCHIVE, QUEUES) for index in spec.indexes]


@pytest.mark.parametrize("name", ["outbox", "_outbox", "Outbox2", "o" * 63, "select"])
def test_a_plain_identifier_is_taken_as_it_is(name: str) -> None:
    assert check_identifier("outbox table", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "2outbox",
        "out box",
        "out-box",
        'out"box',
        "outbox;",
        "outbox\n",
        "übox",
        "out'box",
        "outbox--",
        "a%b",
        "a:b",
    ],
)
def test_what_is_no_plain_identifier_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="outbox table must be letters, digits and underscores"):
        check_identifier("outbox table", name)


def test_a_schema_in_a_tables_name_is_told_where_to_go() -> None:
    with pytest.raises(InvalidName, match=r"got 'app\.outbox'; pass schema="):
        check_identifier("outbox table", "app.outbox")


def test_a_name_longer_than_postgresqls_is_refused() -> None:
    with pytest.raises(InvalidName, match="outbox table must be at most 63 characters, got 64"):
        check_identifier("outbox table", "o" * 64)


@pytest.mark.parametrize("name", [None, 5, b"outbox"])
def test_a_name_is_text(name: object) -> None:
    with pytest.raises(WrongType, match="schema must be a str"):
        check_identifier("schema", name)


def test_short_index_names_can_be_read() -> None:
    assert object_name("outbox", "ready") == "outbox_ready_idx"


@given(table=identifiers, suffix=st.sampled_from(SUFFIXES))
def test_an_index_name_fits_every_framework(table: str, suffix: str) -> None:
    name = object_name(table, suffix)

    assert len(name) <= 30
    assert check_identifier("index", name) == name
    assert not name[0].isdigit()


@given(tables=st.lists(identifiers, min_size=2, max_size=2, unique=True))
def test_no_two_indexes_share_a_name(tables: list[str]) -> None:
    suffixes = set(SUFFIXES)

    names = {object_name(table, suffix) for table in tables for suffix in suffixes}

    assert len(names) == 2 * len(suffixes)


def test_long_tables_that_differ_at_their_end_have_different_indexes() -> None:
    assert object_name("o" * 62 + "a", "ready") != object_name("o" * 62 + "b", "ready")


def test_a_channel_is_named_for_its_table() -> None:
    assert Tables().channel == "outbox_outbox"
    assert Tables("events").channel == "outbox_events"
    assert Tables("events", schema="app").channel == "outbox_app_events"


@given(table=identifiers, schema=st.one_of(st.none(), identifiers))
def test_a_channel_fits_postgresql(table: str, schema: str | None) -> None:
    assert len(channel_name(table, schema)) <= MAX_IDENTIFIER


def test_long_tables_have_channels_of_their_own() -> None:
    assert channel_name("o" * 62 + "a", None) != channel_name("o" * 62 + "b", None)


def test_names_are_quoted_with_their_schema() -> None:
    assert Tables().sql("outbox") == '"outbox"'
    assert Tables(schema="app").sql("outbox") == '"app"."outbox"'


def test_two_tables_cannot_be_one() -> None:
    with pytest.raises(
        InvalidName, match="dead-letter table must be another table than the outbox table, got 'outbox'"
    ):
        Tables("outbox", "outbox")


@pytest.mark.parametrize("field", ["outbox", "dead_letters", "archive", "queues", "schema", "inbox"])
def test_every_name_is_checked(field: str) -> None:
    with pytest.raises(InvalidName, match="got 'x\"; DROP TABLE users; --'"):
        Tables(**{field: 'x"; DROP TABLE users; --'})


def test_a_feature_without_its_table_says_how_to_make_it() -> None:
    with pytest.raises(
        MissingTable, match=r"pause needs the queues table; make it with make_outbox_tables\(metadata\)"
    ):
        Tables().need("pause", "queues")


def test_a_feature_with_its_table_gets_its_quoted_name() -> None:
    assert Tables(queues="controls", schema="app").need("pause", "queues") == '"app"."controls"'


def test_only_the_tables_that_there_are_are_described() -> None:
    assert Tables("a", "b", None, "d").described() == {"a": OUTBOX, "b": DEAD_LETTERS, "d": QUEUES}


def test_a_partial_indexs_predicate_is_plain_sql() -> None:
    assert (
        Index("x", ("a",), where_not_null=("b",), where_null=("c", "d")).where
        == "b IS NOT NULL AND c IS NULL AND d IS NULL"
    )
    assert Index("x", ("a",)).where is None


@pytest.mark.parametrize("spec", [OUTBOX, DEAD_LETTERS, ARCHIVE, QUEUES])
def test_every_table_begins_with_its_identity(spec: TableSpec) -> None:
    assert [column.name for column in spec.columns if column.kind == "identity"] == ["id"]
    assert spec.names[0] == "id"


def test_no_index_contains_a_lease_column() -> None:
    indexed = {
        column for index in OUTBOX.indexes for column in (*index.columns, *index.where_null, *index.where_not_null)
    }

    assert indexed.isdisjoint({"acquired_token", "leased_until", "deliveries_count"})
