"""Notebook 12: batches of rows, in whatever kind of list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def batches(got: Any) -> list[list[int]] | None:
    """The batches as lists; None if it is something else."""
    try:
        return [list(batch) for batch in got]
    except TypeError:
        return None


def largest(measure: Callable[[list[int]], int], got: Any) -> int:
    """The largest of all batches, by the number of rows or of bytes."""
    return max(map(measure, batches(got) or []), default=0)
