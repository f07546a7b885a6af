"""Progress bars for what takes longer than a moment; none where nobody looks."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm

SHOW_AFTER_S = 1.0


def progress_bar(total: int, label: str, unit: str = "row") -> Any:
    """A tqdm bar that appears after a second and goes when it is full.

    Args:
        total: units of work.
        label: what is being done.
        unit: of work.

    Returns:
        A context manager with `update(n)`.

    """
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=SHOW_AFTER_S,
        # In notebooks tqdm does not read this variable by itself; headless runs set it.
        disable=bool(os.environ.get("TQDM_DISABLE")),
    )
