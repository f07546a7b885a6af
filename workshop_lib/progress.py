"""Progress bars for what takes longer than a moment; none in headless runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

SHOW_AFTER_S = 1.0


def progress_bar(total: int, label: str, unit: str = "row") -> Any:
    """A tqdm bar that appears after a second and goes when it is full; on a terminal, or a page.

    Args:
        total: units of work.
        label: what is being done.
        unit: of work.

    Returns:
        A context manager with `update(n)`.

    """
    from tqdm.auto import tqdm  # noqa: PLC0415 -- it looks for widgets, which takes a while

    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=SHOW_AFTER_S,
        # In notebooks tqdm does not read this variable by itself; headless runs set it.
        # None is for tqdm: no bar where the output is a file or a pipe.
        disable=bool(os.environ.get("TQDM_DISABLE")) or None,
    )


def with_progress(items: Collection[T], label: str, unit: str = "request") -> Iterator[T]:
    """The items one by one, behind a progress bar.

    Args:
        items: what to work on.
        label: what is being done.
        unit: one item.

    """
    with progress_bar(len(items), label, unit) as bar:
        for item in items:
            yield item
            bar.update(1)
