"""Work that is done once for each statement's text, which adapters have in their driver's style."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

MEMORABLE = 10_000  # characters; only SQLite's batches are longer, and each size has a text of its own


def remembered(make: Callable[[str], T]) -> Callable[[str], T]:
    """*make*, whose answers for the last few hundred short texts are kept."""
    kept = lru_cache(maxsize=512)(make)

    @wraps(make)
    def answer(text: str) -> T:
        return kept(text) if len(text) < MEMORABLE else make(text)

    return answer
