"""A worker process ends with the process that started it, also where that one was killed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

LOOK_S = 0.5


def end_with(parent: int, first: Callable[[], object] = lambda: None) -> None:
    """Have this process end when its parent has.

    Args:
        parent: the parent's number: it may have ended before this is called.
        first: called before this process ends, for what would be left behind.

    """
    threading.Thread(target=_watch, args=(parent, first), daemon=True).start()


def _watch(parent: int, first: Callable[[], object]) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    try:
        first()
    finally:
        os._exit(1)
