"""A message as the request that FastAPI's dependencies ask for.

The body is the request's body and its path and query parameters too; headers are headers. `app`, `state`, `headers`,
`body()` and `json()` work as in a route, so that one dependency serves both.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from faststream.message import StreamMessage
from starlette.datastructures import Headers
from starlette.requests import Request

CONTEXT = "outbox.context"  # in a request's scope: FastStream's context of its message
BROKER = "outbox.broker"  # in a request's scope: the broker of the router that serves it


class MessageRequest(Request):
    """*fields*: the body by name, where it has names. *body* is what was sent, *decoded* what it says."""

    def __init__(
        self, scope: dict[str, Any], *, headers: Mapping[str, str], body: bytes, decoded: Any, fields: Mapping[str, Any]
    ) -> None:
        super().__init__(
            {
                "type": "http",
                "method": "POST",
                "path": "/",
                "root_path": "",
                "query_string": b"",
                "headers": [],
                "path_params": fields,
                **scope,
            }
        )
        self._headers = MessageHeaders(headers)
        self._query_params: Any = fields
        self._cookies: dict[str, str] = {}
        self._body = body
        self._json = decoded


def body_of(message: StreamMessage[Any]) -> bytes:
    """What was sent; of a batch, which was sent in pieces, nothing."""
    return message.body if isinstance(message.body, bytes) else b""


class MessageHeaders(Headers):
    """Starlette's headers for values in any script, where HTTP knows Latin-1 only.

    Names are found whatever their case, and with "-" for "_", which is how FastAPI spells an argument's name.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._texts = {name.lower(): value for name, value in headers.items()}

    def _name(self, key: str) -> str:
        name = key.lower()
        return name if name in self._texts else name.replace("-", "_")

    def __getitem__(self, key: str) -> str:
        return self._texts[self._name(key)]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._name(key) in self._texts

    def __iter__(self) -> Iterator[Any]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def _list(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]  # what Starlette's other methods read
        return [(name.encode(), value.encode()) for name, value in self._texts.items()]

    def keys(self) -> list[str]:  # type: ignore[override]  # Starlette returns lists
        return list(self._texts)

    def values(self) -> list[str]:  # type: ignore[override]  # as above
        return list(self._texts.values())

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]  # as above
        return list(self._texts.items())

    def getlist(self, key: str) -> list[str]:
        return [self[key]] if key in self else []
