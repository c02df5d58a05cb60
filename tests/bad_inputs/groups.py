"""The kinds of mistakes that users of an outbox make, by number, and what becomes of each here.

They were collected by giving them to faststream-outbox 0.19.0, which refused 24 of 82 clearly; others failed in a lower
layer, some of them inside the caller's transaction, which that broke. Here a group is refused, by the cases of the catalogue
that have its number and by tests that need a state, or it is taken on purpose, for a reason.
"""

from dataclasses import dataclass

HARMLESS = "bad_inputs/test_harmless.py::"
STATES = "bad_inputs/test_states.py::"
HAND_WRITTEN = "bad_inputs/test_hand_written.py::"
SESSIONS = "sqlalchemy/test_bad_input.py::"
DJANGO = "django/test_publishing.py::"
SETTINGS = "django/test_settings.py::"
CHECKS = "django/test_checks.py::"
WORKER = "django/test_worker_command.py::"
COMMANDS = "django/test_commands.py::"


@dataclass(frozen=True)
class Group:
    """One kind of mistake. *tests* show what becomes of it beside the catalogue; *taken*: why it is no mistake here."""

    mistake: str
    tests: tuple[str, ...] = ()
    taken: str = ""


GROUPS: dict[int, Group] = {
    1: Group("an empty queue"),
    2: Group("a blank queue"),
    3: Group("a queue that is no text"),
    4: Group("a queue of 256 characters"),
    5: Group("a queue with NUL"),
    6: Group("a queue with a line end or another control character"),
    7: Group("a queue with a lone surrogate"),
    8: Group(
        "a queue that is SQL",
        (HARMLESS + "test_a_name_is_a_parameter_and_never_a_part_of_a_statement",),
        taken="names are bound parameters",
    ),
    9: Group(
        "a subscriber of a queue that nobody has published to",
        (
            HARMLESS + "test_a_queue_may_have_a_subscriber_before_it_has_a_message",
            WORKER + "test_it_drains_what_is_due_and_says_what_nobody_handles",
        ),
        taken="workers are deployed before publishers; the reverse, messages that nobody handles, is warned of",
    ),
    10: Group(
        "no session",
        (
            SESSIONS + "test_what_is_no_session_is_refused",
            "sqlalchemy/test_publish.py::test_require_transaction_error_refuses_a_publish_without_a_session",
        ),
    ),
    11: Group("an engine, or text, as a session", (SESSIONS + "test_what_is_no_session_is_refused",)),
    12: Group(
        "a synchronous session in asynchronous code, and the other way round",
        (
            SESSIONS + "test_a_sync_session_in_an_async_publish_is_told_where_to_go",
            SESSIONS + "test_an_async_session_in_a_sync_publish_is_told_where_to_go",
        ),
    ),
    13: Group(
        "a connection in autocommit",
        (
            SESSIONS + "test_autocommit_is_no_transaction",
            SESSIONS + "test_an_sqlite_connection_in_autocommit_is_refused",
        ),
    ),
    14: Group(
        "a session that is closed, or whose transaction has failed",
        (
            SESSIONS + "test_a_closed_connection_is_refused",
            SESSIONS + "test_a_session_whose_transaction_has_ended_in_its_block_is_refused",
            STATES + "test_a_transaction_that_has_failed_is_named",
            DJANGO + "test_a_broken_transaction_is_djangos_to_refuse",
        ),
    ),
    15: Group(
        "a session of another database",
        (
            SESSIONS + "test_a_session_of_another_postgresql_database_is_refused",
            SESSIONS + "test_a_session_of_another_kind_of_database_is_refused",
            DJANGO + "test_a_transaction_on_another_database_does_not_count",
        ),
    ),
    16: Group(
        "Django outside atomic()", (DJANGO + "test_outside_a_transaction_a_publish_is_refused_with_the_way_out",)
    ),
    17: Group("a header that is a number, None or nested"),
    18: Group("a header's name that is no text"),
    19: Group("a header that is bytes"),
    20: Group("a header with a line end, and another header behind it"),
    21: Group("a header's name that is no token"),
    22: Group("a header with NUL or a lone surrogate"),
    23: Group("a header that is NaN"),
    24: Group("headers that are no mapping"),
    25: Group("headers without end"),
    26: Group(
        "a header that is called message-id",
        (HARMLESS + "test_nobody_else_chooses_the_identity_of_a_message",),
        taken="a message's id is a column, which no header reaches, and headers of a message can be passed on",
    ),
    27: Group("a correlation id, queue for answers or message id that is none"),
    28: Group("a body that is an object, a function or a coroutine"),
    29: Group("a body with NaN or Infinity"),
    30: Group("a body that is a set or a generator"),
    31: Group(
        "a body with a number that other languages round",
        (HARMLESS + "test_a_large_number_arrives_as_it_is",),
        taken="Python reads it as it is, up to 4,300 digits, beyond which it is refused",
    ),
    32: Group("a body that contains itself, or is nested without end"),
    33: Group("a body with a lone surrogate"),
    34: Group("a body of 100 MB"),
    35: Group("no body", (HARMLESS + "test_none_is_json_null",), taken="None is a body like any other: JSON null"),
    36: Group("a delay below zero", ("bad_inputs/test_calls.py::test_a_vote_with_a_bad_delay_is_no_vote",)),
    37: Group("a delay of millions of years"),
    38: Group("a delay that is a number, an instant that is text"),
    39: Group("an instant without a time zone"),
    40: Group("an instant in the year 9999"),
    41: Group("a delay and an instant"),
    42: Group("a timer or a key that is empty, no text or too long"),
    43: Group("a batch of nothing", (HARMLESS + "test_an_empty_batch_is_nothing",), taken="it sends nothing"),
    44: Group(
        "a batch without end",
        (HARMLESS + "test_a_batch_may_be_large",),
        taken="it is the caller's memory; 50,000 messages take a second",
    ),
    45: Group("a limit below one"),
    46: Group("a limit that is no whole number"),
    47: Group("a timer to cancel that is none"),
    48: Group("a table's name that is SQL, empty, or has NUL"),
    49: Group("a table's name with its schema"),
    50: Group("a table's name that is too long"),
    51: Group("one table for two purposes"),
    52: Group("text in the place of a table or an engine"),
    53: Group("a synchronous engine"),
    54: Group(
        "a database without statements",
        (
            SESSIONS + "test_an_engine_of_an_unsupported_database_is_refused",
            CHECKS + "test_a_database_without_statements_is_refused",
        ),
    ),
    55: Group("no workers, or a number of them that is none", (SETTINGS + "test_what_cannot_work_is_named",)),
    56: Group("a million workers, a batch of a billion"),
    57: Group("a lease that is over at once, or text"),
    58: Group(
        "leases that are extended too late",
        (HARMLESS + "test_what_follows_from_the_lease_is_no_option",),
        taken="when a lease is extended follows from its length, and is no option",
    ),
    59: Group(
        "a handler that may take longer than its lease",
        ("contract/test_worker_leases.py::test_a_handler_slower_than_its_lease_has_its_message_to_itself",),
        taken="leases are extended while handlers run",
    ),
    60: Group("a retry strategy that cannot answer"),
    61: Group("a retry strategy of numbers that are none"),
    62: Group(
        "acknowledging before the handler has run",
        ("faststream/test_acknowledgement.py::test_ack_first_completes_before_the_handler_runs",),
        taken="the row is completed first, so it is what it says: at most once",
    ),
    63: Group(
        "no queue, the same one twice, two subscribers of one",
        (SESSIONS + "test_two_subscribers_of_one_queue_do_not_start_and_leave_nothing_behind",),
    ),
    64: Group("a handler that cannot be called, or yields"),
    65: Group(
        "a handler's parameter without an annotation, two of them for one body",
        (
            HARMLESS + "test_a_parameter_without_an_annotation_is_the_body",
            HARMLESS + "test_two_parameters_are_two_fields_of_the_body",
        ),
        taken="FastStream's semantics",
    ),
    66: Group("a graceful timeout below zero", (SETTINGS + "test_what_cannot_work_is_named",)),
    67: Group(
        "a worker of an application that cannot be imported",
        (WORKER + "test_what_is_wrong_is_told_in_one_line_and_nothing_is_lost",),
    ),
    68: Group(
        "a worker whose database is down",
        (
            WORKER + "test_a_database_that_does_not_answer_is_told_in_one_line",
            SESSIONS + "test_an_unreachable_server_is_named_without_credentials",
        ),
    ),
    69: Group(
        "a worker whose tables are missing or others",
        (
            WORKER + "test_a_database_without_tables_is_told_with_the_way_out",
            WORKER + "test_tables_of_another_shape_are_told_with_the_way_out",
            SESSIONS + "test_a_worker_does_not_start_on_a_damaged_table",
        ),
    ),
    70: Group("a missing grant", (COMMANDS + "test_what_the_database_forbids_is_told_in_one_line",)),
    71: Group(
        "a worker's arguments that nobody can mean", (WORKER + "test_arguments_that_cannot_be_meant_are_refused",)
    ),
    72: Group(
        "settings that do not exist",
        (
            SETTINGS + "test_what_cannot_work_is_named",
            CHECKS + "test_an_alias_that_does_not_exist_is_named_with_those_that_do",
        ),
    ),
    73: Group(
        "a second start, a publish after the stop, another event loop, a fork",
        (
            HARMLESS + "test_a_broker_that_has_started_starts_again_and_publishes_when_it_has_stopped",
            STATES + "test_a_running_broker_does_not_start_on_another_event_loop",
            STATES + "test_a_broker_that_was_running_when_its_process_forked_does_not_start",
        ),
    ),
    74: Group(
        "a row written by hand",
        (
            HAND_WRITTEN + "test_headers_that_are_no_object",
            HAND_WRITTEN + "test_a_payload_that_is_not_what_its_content_type_says",
        ),
    ),
}
