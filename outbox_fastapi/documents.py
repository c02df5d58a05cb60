"""The AsyncAPI document of an application's routers: a page, JSON, YAML, and try-it-out where that is switched on.

Routers of one application that show their document at the same path have one document.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from fastapi import FastAPI
from faststream.asgi.factories.asyncapi.try_it_out import TryItOutForm, TryItOutProcessor
from faststream.specification import AsyncAPI, Specification, get_asyncapi_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

if TYPE_CHECKING:
    from outbox_fastapi.router import OutboxRouter

_started: WeakKeyDictionary[FastAPI, list["OutboxRouter"]] = WeakKeyDictionary()


class Documents:
    """One router's document at *path*; *given* is the user's own, None: the application's title, version and so on."""

    def __init__(self, router: "OutboxRouter", path: str, given: AsyncAPI | None) -> None:
        self._router = router
        self._given = given
        self.path = path

    def add_routes(self, *, try_it_out: bool) -> None:
        """*try_it_out*: a POST that publishes, which is as open to the world as the router's dependencies let it."""
        router = self._router
        router.get(self.path, include_in_schema=False)(self._page(try_it_out))
        router.get(f"{self.path}.json", include_in_schema=False)(self._json)
        router.get(f"{self.path}.yaml", include_in_schema=False)(self._yaml)
        if try_it_out:
            router.post(f"{self.path}/try", include_in_schema=False)(self._try)

    def started(self, app: FastAPI) -> None:
        """The router runs in *app*."""
        routers = _started.setdefault(app, [])
        if self._router not in routers:
            routers.append(self._router)

    def specification(self, app: FastAPI | None) -> AsyncAPI:
        """The document's source; None: of this router alone."""
        brokers = self._brokers(app)
        if self._given is not None:
            for broker in brokers:
                self._given.add_broker(broker)
            return self._given
        if app is None:
            return AsyncAPI(*brokers)
        return AsyncAPI(
            *brokers,
            title=app.title,
            version=app.version,
            description=app.description or None,
            terms_of_service=app.terms_of_service,
            contact=app.contact,
            license=app.license_info,
        )

    def _brokers(self, app: FastAPI | None) -> Sequence[Any]:
        beside = [] if app is None else _started.get(app, [])
        routers = [self._router, *(one for one in beside if one.documents_path == self._router.documents_path)]
        return list(dict.fromkeys(router.broker for router in routers))

    def _document(self, request: Request) -> Specification:
        return self.specification(request.app).to_specification()

    def _page(self, try_it_out: bool) -> Any:
        async def page(
            request: Request,
            sidebar: bool = True,
            info: bool = True,
            servers: bool = True,
            operations: bool = True,
            messages: bool = True,
            schemas: bool = True,
            errors: bool = True,
            expandMessageExamples: bool = True,  # noqa: N803  the name in FastStream's URLs
        ) -> Response:
            html = get_asyncapi_html(
                self._document(request),
                sidebar=sidebar,
                info=info,
                servers=servers,
                operations=operations,
                messages=messages,
                schemas=schemas,
                errors=errors,
                expand_message_examples=expandMessageExamples,
                try_it_out_path=f"{request.url.path}/try" if try_it_out else None,
            )
            return HTMLResponse(html)

        return page

    async def _json(self, request: Request) -> Response:
        text = json.dumps(self._document(request).to_jsonable(), indent=2)
        return Response(text, media_type="application/json")

    async def _yaml(self, request: Request) -> Response:
        return Response(self._document(request).to_yaml(), media_type="application/yaml")

    async def _try(self, request: Request) -> Response:
        try:
            form: Any = await request.json()
        except ValueError as error:
            return JSONResponse({"details": f"invalid JSON: {error}"}, 400)
        if not isinstance(form, dict):
            return JSONResponse({"details": f"a form is an object, got {type(form).__name__}"}, 400)
        result = await TryItOutProcessor(*self._brokers(request.app)).process(cast("TryItOutForm", form))
        return Response(result.body, result.status_code, media_type="application/json")
