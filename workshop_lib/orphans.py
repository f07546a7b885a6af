"""A worker process ends with the process that started it, also where that one was killed."""

from __future__ import annotations

import os
import threading
import time

LOOK_S = 0.5


def exit_with_parent(parent: int) -> None:
    """Have this process end when its parent has.

    Args:
        parent: the parent's number: it may have ended before this is called.

    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)
