"""What a handler asks for, read from its signature into FastAPI's own `Dependant`.

A message has no query string, so a parameter that names no place of its own (`Header`, `Query`, `Depends`, …) is a part of
the body: the whole of it where there is one such parameter and it is no scalar, a field of it otherwise. A single
parameter of any type is the field of its name if there is one, or else the whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature, unwrap
from typing import Annotated, Any, ForwardRef, cast, get_args, get_origin

from fast_depends.dependencies import Dependant as FastDependsDependant
from fast_depends.library.serializer import OptionItem
from fastapi import Body, params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant, get_parameterless_sub_dependant, get_typed_signature
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.websockets import WebSocket

from outbox_core.faststream._compat import Context as FastStreamContext
from outbox_fastapi.annotations import ContextValue
from outbox_fastapi.errors import HandlerError


@dataclass(frozen=True, slots=True)
class Parameters:
    """*embed*: whether the body has a field for each parameter. *only*: the name of the only parameter that takes of the
    body, None if there are several; *anything*: whether that has no type.

    *contexts* are what the handler itself wants of FastStream's context: read directly, they cost a tenth.
    """

    dependant: Dependant
    contexts: Mapping[str, ContextValue]
    embed: bool
    only: str | None
    anything: bool

    @classmethod
    def of(cls, call: Callable[..., Any], dependencies: Sequence[params.Depends] = ()) -> "Parameters":
        """Those of *call*, and of the *dependencies* that nobody reads."""
        call = unwrap(call)
        dependant = get_dependant(path="", call=call)
        scalars = [one for one in dependant.query_params if not _has_place(_parameter(call, one.name))]
        if scalars:
            names = {scalar.name for scalar in scalars}
            dependant = get_dependant(path="", call=_with_body(call, names))
        contexts = {one.name: one.call for one in dependant.dependencies if isinstance(one.call, ContextValue)}
        dependant.dependencies = [one for one in dependant.dependencies if one.name not in contexts]
        dependant.dependencies[:0] = [get_parameterless_sub_dependant(depends=one, path="") for one in dependencies]
        bodies = {parameter.name: parameter for one in _tree(dependant) for parameter in one.body_params}
        whole = len(bodies) == 1 and not scalars
        own = [one.name for one in (*dependant.body_params, *dependant.path_params, *dependant.query_params)]
        only = own[0] if len(own) == 1 else None
        return cls(
            dependant,
            cast("dict[str, ContextValue]", contexts),
            embed=not whole or any(getattr(one.field_info, "embed", None) for one in bodies.values()),
            only=only,
            anything=[one.name for one in scalars if one.field_info.annotation is Any] == [only],
        )

    def place(self, decoded: Any) -> tuple[Mapping[str, Any], Any]:
        """The fields of a body, for path and query parameters, and the body as FastAPI is to see it."""
        if isinstance(decoded, dict) and not (self.anything and self.only not in decoded):
            return decoded, decoded
        named = {} if self.only is None else {self.only: decoded}
        fields = decoded if isinstance(decoded, dict) else named
        return fields, named if self.embed and named else decoded

    def joining(self, sessions: set[Callable[..., Any]], opened: Callable[..., Any]) -> "Parameters":
        """The same with the result of *opened* in place of what the dependencies *sessions* would make."""
        return replace(self, dependant=_replaced(self.dependant, sessions, opened))


def _parameter(call: Callable[..., Any], name: str) -> Parameter:
    return typed_signature(call).parameters[name]


def typed_signature(call: Callable[..., Any]) -> Signature:
    """With annotations evaluated where they were strings."""
    return get_typed_signature(unwrap(call))


def _markers(parameter: Parameter) -> tuple[Any, ...]:
    """What stands beside the type: in `Annotated`, and as the default."""
    annotation = parameter.annotation
    beside = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return (*beside, parameter.default)


def _kind(parameter: Parameter) -> Any:
    """The type, without what stands beside it."""
    return get_args(parameter.annotation)[0] if get_origin(parameter.annotation) is Annotated else _type(parameter)


def _depends_of(parameter: Parameter) -> params.Depends | None:
    return next((one for one in _markers(parameter) if isinstance(one, params.Depends)), None)


def _dependency_of(parameter: Parameter, depends: params.Depends) -> Callable[..., Any]:
    """What is called for *parameter*; a bare `Depends()` means its type."""
    return depends.dependency or _kind(parameter)


def _has_place(parameter: Parameter) -> bool:
    return any(isinstance(marker, params.Param | params.Body | params.Depends) for marker in _markers(parameter))


def _with_body(call: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """Something with *call*'s signature, but that the parameters *names* are in the body."""

    def stand_in(**_: Any) -> None: ...

    parameters = [
        one.replace(annotation=Annotated[_type(one), Body()]) if one.name in names else one
        for one in typed_signature(call).parameters.values()
    ]
    stand_in.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads first
    return stand_in


def _type(parameter: Parameter) -> Any:
    return Any if parameter.annotation is Parameter.empty else parameter.annotation


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for one in dependant.dependencies:
        yield from _tree(one)


def _replaced(dependant: Dependant, calls: set[Callable[..., Any]], by: Callable[..., Any]) -> Dependant:
    dependant.dependencies[:] = [
        get_dependant(path="", call=by, name=one.name) if one.call in calls else _replaced(one, calls, by)
        for one in dependant.dependencies
    ]
    return dependant


# What cannot be called


def check_handler(call: Callable[..., Any]) -> None:
    """`HandlerError` for a handler that cannot be called with a message, or that depends on what cannot."""
    for parameter in _signature_or_none(call):
        _refuse_unnamed(call, parameter)
        if _depends_of(parameter) is None:
            _refuse_unknown_type(call, parameter)
    _refuse_faststream(call)


def _refuse_unnamed(call: Callable[..., Any], parameter: Parameter) -> None:
    if parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
        raise HandlerError(
            f"{str(parameter)!r} of {name_of(call)}() cannot be passed by name, as FastAPI does; a decorator around the "
            "handler needs functools.wraps"
        )


def _refuse_unknown_type(call: Callable[..., Any], parameter: Parameter) -> None:
    kind = _kind(parameter)
    if isinstance(kind, ForwardRef | str):
        text = kind if isinstance(kind, str) else kind.__forward_arg__
        raise HandlerError(
            f"the annotation {text!r} of {parameter.name!r} of {name_of(call)}() names nothing in its module; "
            "define or import it at the top level"
        )
    if _is(kind, WebSocket):
        raise HandlerError(
            f"{parameter.name!r} of {name_of(call)}() is a WebSocket, and a message has none; use fastapi.Request"
        )


def _refuse_faststream(call: Callable[..., Any]) -> None:
    """In *call* and in what it depends on: its resolver does not run here, and they would get the marker itself."""
    for parameter in _signature_or_none(call):
        depends = _depends_of(parameter)
        if depends is not None:
            _refuse_faststream(_dependency_of(parameter, depends))
            continue
        for marker in _markers(parameter):
            if isinstance(marker, FastDependsDependant):
                raise HandlerError(_refused("Depends", call, parameter, "fastapi.Depends"))
            if isinstance(marker, FastStreamContext):
                instead = "outbox_fastapi's Context and annotations, fastapi.Header or fastapi.Path"
                raise HandlerError(_refused("Context, Header or Path", call, parameter, instead))


def _refused(what: str, call: Callable[..., Any], parameter: Parameter, instead: str) -> str:
    return (
        f"faststream's {what} cannot be resolved for {parameter.name!r} of {name_of(call)}(), whose arguments FastAPI finds; "
        f"use {instead}"
    )


def name_of(call: Callable[..., Any]) -> str:
    return getattr(unwrap(call), "__name__", type(call).__name__)


# Sessions


def sessions_of(call: Callable[..., Any]) -> set[Callable[..., Any]]:
    """The dependencies of *call*, direct or not, that are annotated as asynchronous sessions or connections."""
    found: set[Callable[..., Any]] = set()
    for parameter in _signature_or_none(call):
        depends = _depends_of(parameter)
        if depends is None:
            continue
        kind = _kind(parameter)
        dependency = _dependency_of(parameter, depends)
        if _is(kind, Session | Connection):
            raise HandlerError(
                f"{name_of(call)}() depends on a synchronous {kind.__name__}, {parameter.name!r}, which a "
                "transactional subscriber cannot complete its message in; depend on an AsyncSession"
            )
        found |= {dependency} if _is(kind, AsyncSession | AsyncConnection) else sessions_of(dependency)
    return found


def _signature_or_none(call: Callable[..., Any]) -> Sequence[Parameter]:
    try:
        return list(typed_signature(call).parameters.values())
    except (TypeError, ValueError):  # a builtin has none
        return ()


def _is(kind: Any, classes: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, classes)


# AsyncAPI


@dataclass(frozen=True, slots=True)
class Described:
    """A handler's payload, as FastStream's document generator reads it of FastDepends' model."""

    model: type[Any]
    flat_params: list[OptionItem]
    custom_fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Callable[..., Any], parameters: Parameters) -> "Described":
        found: dict[str, OptionItem] = {}
        for one in _tree(parameters.dependant):
            for part in (*one.body_params, *one.path_params, *one.query_params):
                info = part.field_info
                found.setdefault(
                    part.name, OptionItem(field_name=part.name, field_type=info.annotation, default_value=info)
                )
        return cls(type(name_of(call), (), {}), list(found.values()))
