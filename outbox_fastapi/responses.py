"""`response_model` of a subscriber: what its handlers return, validated and cut to that model, as for a route."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypedDict

from fast_depends.utils import is_coroutine_callable
from fastapi.exceptions import ResponseValidationError
from faststream.response import Response, ensure_response
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from outbox_core.errors import OptionError


class ResponseOptions(TypedDict, total=False):
    """What FastAPI's routes may be told about their response."""

    response_model: Any
    response_model_include: Any
    response_model_exclude: Any
    response_model_by_alias: bool
    response_model_exclude_unset: bool
    response_model_exclude_defaults: bool
    response_model_exclude_none: bool


class ResponseModel:
    """Put around a handler: its reply, or the body of its `Response`, as plain data of the model. See `ResponseOptions`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        model = options["response_model"]
        try:
            self._adapter = TypeAdapter(model)
        except PydanticUserError as error:
            raise OptionError(f"response_model must be a type that pydantic knows, got {model!r}") from error
        self._dumping: dict[str, Any] = {
            name.removeprefix("response_model_"): value for name, value in options.items() if name != "response_model"
        }
        self._dumping.setdefault("by_alias", True)

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        if is_coroutine_callable(call):

            @wraps(call)
            async def handler(*args: Any, **kwargs: Any) -> Response:
                return self._shape(await call(*args, **kwargs))

            return handler

        @wraps(call)
        def sync_handler(*args: Any, **kwargs: Any) -> Response:
            return self._shape(call(*args, **kwargs))

        return sync_handler

    def _shape(self, result: Any) -> Response:
        response = ensure_response(result)
        try:
            value = self._adapter.validate_python(response.body, from_attributes=True)
        except ValidationError as error:
            raise ResponseValidationError(error.errors(), body=response.body) from error
        response.body = self._adapter.dump_python(value, mode="json", **self._dumping)
        return response
