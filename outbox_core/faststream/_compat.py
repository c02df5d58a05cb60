"""Every private name of FastStream that we stand on, and the only file that may import one.

FastStream's internals settle with 1.0 (ag2ai/faststream#2806); until then `faststream>=0.7.6,<0.8` is a tested fact, and a
change upstream breaks this page first.
"""

import hashlib
import inspect
from functools import cache

from faststream._internal._compat import json_loads
from faststream._internal.broker import BrokerUsecase
from faststream._internal.broker.registrator import Registrator
from faststream._internal.broker.router import ArgsContainer, BrokerRouter, SubscriberRoute
from faststream._internal.configs import (
    BrokerConfig,
    PublisherSpecificationConfig,
    PublisherUsecaseConfig,
    SubscriberSpecificationConfig,
    SubscriberUsecaseConfig,
)
from faststream._internal.constants import EMPTY
from faststream._internal.context import Context, ContextRepo
from faststream._internal.context.resolve import resolve_context_by_name
from faststream._internal.di import FastDependsConfig
from faststream._internal.endpoint.publisher import PublisherSpecification, PublisherUsecase
from faststream._internal.endpoint.publisher.fake import FakePublisher
from faststream._internal.endpoint.subscriber import SubscriberSpecification, SubscriberUsecase
from faststream._internal.endpoint.subscriber.call_item import CallsCollection
from faststream._internal.endpoint.utils import ParserComposition, process_msg
from faststream._internal.logger import DefaultLoggerStorage, LoggerState, make_logger_state
from faststream._internal.logger.logging import get_broker_logger
from faststream._internal.parser import DefaultCodec
from faststream._internal.producer import ProducerProto
from faststream._internal.testing.broker import TestBroker
from faststream.middlewares.logging import CriticalLogMiddleware, _LoggingMiddleware

# The module of the command `faststream`, which is found among those that are imported, and not imported here.
COMMAND_LINE = "faststream._internal.cli.main"


def pipeline_digest() -> str:
    """Of the source of all that `outbox_core.faststream.pipeline` stands for; empty where there is no source to read."""
    own, log = SubscriberUsecase, _LoggingMiddleware
    try:
        build = own._SubscriberUsecase__build__middlewares_stack  # type: ignore[attr-defined]  # mangled
        parts = (own.process_message, build, log.__init__, log.consume_scope, log.__aexit__)
        source = "".join(map(inspect.getsource, parts))
    except (AttributeError, OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@cache
def pipeline_is_known() -> bool:
    """Whether that source is the one that ours was compared with; asked once, by whoever consumes."""
    return pipeline_digest() in {"7e023e71f77ec893"}  # of 0.7.8


__all__ = [
    "COMMAND_LINE",
    "EMPTY",
    "ArgsContainer",
    "BrokerConfig",
    "BrokerRouter",
    "BrokerUsecase",
    "CallsCollection",
    "Context",
    "ContextRepo",
    "CriticalLogMiddleware",
    "DefaultCodec",
    "DefaultLoggerStorage",
    "FakePublisher",
    "FastDependsConfig",
    "LoggerState",
    "ParserComposition",
    "ProducerProto",
    "PublisherSpecification",
    "PublisherSpecificationConfig",
    "PublisherUsecase",
    "PublisherUsecaseConfig",
    "Registrator",
    "SubscriberRoute",
    "SubscriberSpecification",
    "SubscriberSpecificationConfig",
    "SubscriberUsecase",
    "SubscriberUsecaseConfig",
    "TestBroker",
    "get_broker_logger",
    "json_loads",
    "make_logger_state",
    "pipeline_digest",
    "pipeline_is_known",
    "process_msg",
    "resolve_context_by_name",
]
