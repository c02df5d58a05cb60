"""FastAPI finds the arguments of FastStream's handlers.

    message --decode--> MessageRequest --FastAPI's dependencies--> arguments --> handler --> its dependencies close

What a route may depend on, a handler may depend on: `Depends` of all kinds, `Header`, `Path`, `Body`, `Request`,
`BackgroundTasks`. Dependencies see what the handler raised, and close before FastStream publishes the reply.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial, wraps
from typing import Annotated, Any

from fast_depends.utils import is_coroutine_callable
from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.utils import solve_dependencies
from fastapi.exceptions import FastAPIError, RequestValidationError
from faststream import BaseMiddleware
from faststream.message import StreamMessage
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import Request

from outbox_core.completion import Transaction
from outbox_core.errors import WrongType
from outbox_core.faststream._compat import ContextRepo
from outbox_core.message import Delivery
from outbox_fastapi.errors import DependencyError, HandlerError
from outbox_fastapi.parameters import Described, Parameters, check_handler, name_of, sessions_of
from outbox_fastapi.request import CONTEXT, MessageRequest, body_of

_SESSION = "outbox.session"  # in a request's scope: the transaction that completes its message
_BACKGROUND = "outbox_background_tasks"


class FastAPIInjection:
    """One router's. *overrides* has `dependency_overrides`; None: the application that the router is started with has."""

    def __init__(self, context: ContextRepo, overrides: Any | None = None) -> None:
        self.context = context
        self.app: FastAPI | None = None
        self.state: dict[str, Any] = {}
        self._overrides = overrides

    def bind(self, call: Callable[..., Any], /) -> "Handler":
        check_handler(call)
        return Handler(call, self)

    def describe(self, bound: "Handler", dependencies: Sequence[Any], /) -> Described:
        bound.dependencies = dependencies
        try:
            bound.parameters = Parameters.of(bound.call, dependencies)
        except FastAPIError as error:
            reason, _, _ = str(error).partition(". ")
            raise HandlerError(f"FastAPI cannot find the arguments of {name_of(bound.call)}(): {reason}") from error
        return Described.of(bound.call, bound.parameters)

    def transaction(self, calls: Sequence[Callable[..., Any]], /) -> Transaction | None:
        """That of the session which the handlers depend on, so that one commit ends all of it."""
        sessions = {session for call in calls for session in sessions_of(call)}
        if not sessions:
            return None
        if len(sessions) > 1:
            raise HandlerError(
                "a transactional subscriber completes its message in one session, and there are "
                f"{len(sessions)} ({', '.join(sorted(map(name_of, sessions)))}) in {', '.join(map(name_of, calls))}(); "
                "open the others in the handler"
            )
        dependency = sessions.pop()

        async def opened(session: Annotated[Any, Depends(dependency)]) -> None: ...

        return partial(self._open, name_of(dependency), Parameters.of(opened))

    @asynccontextmanager
    async def _open(self, name: str, parameters: Parameters, batch: Sequence[Delivery]) -> AsyncIterator[object]:
        """The session that *name* gives, committed before its dependency closes, whether that commits or not."""
        request = self.request(batch[0].headers, batch[0].payload, None, {})
        failure: BaseException | None = None
        async with AsyncExitStack() as stack, AsyncExitStack() as function_stack:
            arguments = await self.solve(parameters, request, None, stack, function_stack)
            session = arguments["session"]
            if not isinstance(session, AsyncSession | AsyncConnection):
                raise WrongType(f"what {name}() gives", "an AsyncSession or AsyncConnection", session)
            try:
                yield session
                await session.commit()
            except BaseException as error:
                failure = error
                raise
        if failure is not None:  # which the dependency kept to itself, after it rolled back
            raise failure

    def request(
        self, headers: Mapping[str, str], body: bytes, decoded: Any, fields: Mapping[str, Any]
    ) -> MessageRequest:
        scope = {
            "state": self.state.copy(),
            CONTEXT: self.context,
        }
        if self.app is not None:
            scope["app"] = self.app
            scope["router"] = self.app.router
        return MessageRequest(scope, headers=headers, body=body, decoded=decoded, fields=fields)

    async def solve(
        self,
        parameters: Parameters,
        request: MessageRequest,
        body: Any,
        stack: AsyncExitStack,
        function_stack: AsyncExitStack,
    ) -> dict[str, Any]:
        """The arguments; what was opened for them closes with *stack*, or before it with *function_stack*, as they ask.

        Raises `RequestValidationError`.
        """
        request.scope["fastapi_inner_astack"] = stack
        request.scope["fastapi_function_astack"] = function_stack
        solved = await solve_dependencies(
            request=request,
            dependant=parameters.dependant,
            body=body,
            dependency_overrides_provider=self._overrides or self.app,
            async_exit_stack=stack,
            embed_body_fields=parameters.embed,
        )
        if solved.errors:
            raise RequestValidationError(solved.errors, body=body)
        request.scope[_BACKGROUND] = solved.background_tasks
        arguments: dict[str, Any] = solved.values
        for name, value in parameters.contexts.items():
            arguments[name] = value.read(self.context)
        return arguments


class Handler:
    """A handler as a function of its message, once it is described."""

    parameters: Parameters
    dependencies: Sequence[Any]

    def __init__(self, call: Callable[..., Any], injection: FastAPIInjection) -> None:
        wraps(call)(self)  # FastStream reads the name and the documentation
        self.call = call
        self._injection = injection
        self._run = call if is_coroutine_callable(call) else partial(run_in_threadpool, call)
        self._joined: Parameters | None = None

    async def __call__(self, message: StreamMessage[Any]) -> Any:
        decoded = await message.decode()
        fields, body = self.parameters.place(decoded)
        request = self._injection.request(message.headers, body_of(message), decoded, fields)
        parameters = self.parameters
        session = getattr(message, "session", None)
        if session is not None:
            request.scope[_SESSION] = session
            parameters = self._joined = self._joined or self._joining()
        failure: BaseException | None = None
        async with AsyncExitStack() as stack, AsyncExitStack() as function_stack:
            try:
                arguments = await self._injection.solve(parameters, request, body, stack, function_stack)
                if session is not None:
                    _refuse_other_sessions(self.call, arguments, session)
                result = await self._run(**arguments)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise DependencyError(
                f"a dependency of {name_of(self.call)}() caught what was raised, and did not raise it again; "
                'in a dependency with yield, "except" must end with "raise"'
            ) from failure
        setattr(message, _BACKGROUND, request.scope[_BACKGROUND])
        return result

    def _joining(self) -> Parameters:
        return Parameters.of(self.call, self.dependencies).joining(sessions_of(self.call), _opened_session)


async def _opened_session(request: Request) -> object:
    return request.scope[_SESSION]


def _refuse_other_sessions(call: Callable[..., Any], arguments: Mapping[str, Any], session: object) -> None:
    """What is written in another session is not committed with the message, which is what was asked for."""
    for name, value in arguments.items():
        if isinstance(value, AsyncSession | AsyncConnection | Session | Connection) and value is not session:
            raise HandlerError(
                f"{name!r} of {name_of(call)}() is a session of its own, and what is written in it would not be committed "
                f"with the message; annotate it ({name}: AsyncSession), so that it is found, or use message.session"
            )


class BackgroundTasksMiddleware(BaseMiddleware):
    """Runs a handler's background tasks once its reply is published. One that fails counts as a failure of the handler."""

    async def after_processed(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> bool | None:
        message = self.context.get_local("message")
        tasks = getattr(message, _BACKGROUND, None)
        if exc_type is None and tasks is not None:
            setattr(message, _BACKGROUND, None)  # routers around this one have this middleware too
            await tasks()
        return False
