"""Conflicts between transactions, which are run again, kept out of FastStream's log of errors.

FastStream logs what leaves its pipeline as an error, with a traceback, unless it is an `IgnoredException`; where several
workers update the same rows, that would be many a second, and none of them a failure.
"""

from collections.abc import Callable
from typing import Any

from faststream import BaseMiddleware
from faststream.exceptions import IgnoredException


class Conflicted(IgnoredException):
    """Carries *error*, the conflict, past FastStream's log."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(f"its transaction conflicted with another one: {error}")


class ConflictMiddleware(BaseMiddleware):
    """The outermost of a transactional handler's."""

    def __init__(self, msg: Any, /, *, context: Any, is_conflict: Callable[[Exception], bool]) -> None:
        super().__init__(msg, context=context)
        self._is_conflict = is_conflict

    async def __aexit__(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> bool:
        if isinstance(exc_val, Exception) and not isinstance(exc_val, IgnoredException) and self._is_conflict(exc_val):
            raise Conflicted(exc_val) from exc_val
        return False
