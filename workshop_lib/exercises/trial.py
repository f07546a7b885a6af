"""Run a learner's code within a time limit, and find the line of theirs at which it ended."""

from __future__ import annotations

import ctypes
import inspect
import linecache
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went.

    Attributes:
        error: what was raised, if anything.
        too_late: whether it was stopped because of the time limit.
        your_line: the learner's line that raised or hung, as a line of text; empty if unknown.

    """

    error: BaseException | None = None
    too_late: bool = False
    your_line: str = ""


def attempt(work: Callable[[], object], limit_s: float, answer: object) -> Trial:
    """Do the work, which calls the answer. Raises nothing but an Interrupt."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - even exit() is to be told in words
            errors.append(error)

    # A daemon, because code that waits in the system cannot be called off.
    worker = threading.Thread(target=run, name="exercise", daemon=True)
    worker.start()
    try:
        worker.join(limit_s)
    finally:  # also after an Interrupt
        frame = sys._current_frames().get(worker.ident or 0) if worker.is_alive() else None
        if frame is not None:
            _call_off(worker)
    if frame is not None:
        return Trial(too_late=True, your_line=_your_line(traceback.walk_stack(frame), answer))
    if not errors:
        return Trial()
    raised = errors[0].__cause__ or errors[0]
    innermost_first = reversed(list(traceback.walk_tb(raised.__traceback__)))
    return Trial(errors[0], your_line=_your_line(innermost_first, answer))


def _call_off(worker: threading.Thread) -> None:
    """End a loop: it would slow down whatever the next cells measure."""
    thread_id = ctypes.c_ulong(worker.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(SystemExit))


def _your_line(frames: Iterable[tuple[FrameType, int]], answer: object) -> str:
    """The first of the frames that is in the learner's notebook, whichever cell it is in."""
    notebook = sys.modules["__main__"].__dict__
    function = inspect.unwrap(answer) if callable(answer) else answer
    yours = getattr(function, "__globals__", notebook)
    for frame, number in frames:
        if frame.f_globals is yours:
            line = linecache.getline(frame.f_code.co_filename, number).strip()
            return f"Your line {number}: `{line}`" if line else f"Your line {number}."
    return ""
