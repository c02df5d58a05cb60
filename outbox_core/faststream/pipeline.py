"""FastStream's way of a message through middlewares and handlers, without what it makes anew for each message.

    context --> middlewares enter --> parser, filter --> consume scopes --> handler --> publishers --> middlewares exit

Upstream's `process_message` spends more on exit stacks, context managers and a log middleware that has nothing to log than
on the handler's call. Everything that somebody can see is as upstream has it: what is called, in which order, with which
context, and what becomes of errors (tests/faststream/test_pipeline.py has both handle the same). Whatever upstream's
version is not known to be the same takes upstream's own way (`_compat.pipeline_is_known`).
"""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

from faststream.exceptions import SubscriberNotFound
from faststream.response import Response, ensure_response

from outbox_core.faststream._compat import CriticalLogMiddleware, LoggerState

if TYPE_CHECKING:
    from outbox_core.faststream.subscriber import OutboxSubscriber


async def process(subscriber: "OutboxSubscriber", msg: Any) -> Response:
    """What the handler of *msg* returned; raises what the middlewares let through."""
    config = subscriber._outer_config
    context, logger = config.context, config.logger
    tokens = [
        (name, context.set_local(name, value))
        for name, value in (
            ("handler_", subscriber),
            ("logger", logger.logger.logger),
            *config.extra_context.items(),
        )
    ]
    try:
        makers = subscriber._broker_middlewares
        if not _is_quiet(logger):
            return await _within([CriticalLogMiddleware(logger), *makers], subscriber, msg, tokens)
        try:
            return await (_within(makers, subscriber, msg, tokens) if makers else _handle(subscriber, msg, tokens, ()))
        except BaseException as error:
            await CriticalLogMiddleware(logger)(msg, context=context).__aexit__(type(error), error, error.__traceback__)
            raise
    finally:
        for name, token in reversed(tokens):
            context.reset_local(name, token)


def _is_quiet(state: LoggerState) -> bool:
    """Whether nothing is logged of a message that is handled without an error."""
    if not state.logger:  # not set up yet, and upstream says so
        return False
    logger = state.logger.logger
    return logger is None or (isinstance(logger, logging.Logger) and not logger.isEnabledFor(state.log_level))


async def _within(makers: Sequence[Any], subscriber: "OutboxSubscriber", msg: Any, tokens: list[Any]) -> Response:
    context = subscriber._outer_config.context
    async with AsyncExitStack() as stack:
        middlewares = []
        for make in makers:
            middlewares.append(middleware := make(msg, context=context))
            await stack.enter_async_context(middleware)
        return await _handle(subscriber, msg, tokens, middlewares[::-1])
    return ensure_response(None)  # one of them has dealt with the error


async def _handle(subscriber: "OutboxSubscriber", msg: Any, tokens: list[Any], inside_out: Sequence[Any]) -> Response:
    """By the first handler whose filter takes it. What it sets is in *tokens*, since middlewares exit within it."""
    parsed: dict[Any, Any] = {}
    for call in subscriber.calls:
        message = await call.is_suitable(msg, parsed)
        if message is None:
            continue
        context = subscriber._outer_config.context
        for name, value in (("log_context", subscriber.get_log_context(message)), ("message", message)):
            tokens.append((name, context.set_local(name, value)))
        scopes = [middleware.consume_scope for middleware in inside_out]
        response = ensure_response(await call.call(message=message, _extra_middlewares=scopes))
        response.correlation_id = response.correlation_id or message.correlation_id
        answers = subscriber._make_response_publisher(message) if message.reply_to and not subscriber._no_reply else ()
        for publisher in chain(answers, call.handler._publishers):
            scopes = [middleware.publish_scope for middleware in inside_out]
            await publisher._publish(response.as_publish_command(), _extra_middlewares=scopes)
        return response
    raise SubscriberNotFound(f"no handler of this subscriber takes {msg!r}")
