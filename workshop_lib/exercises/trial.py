"""Run a learner's code within a time limit, and find the line of theirs at which it ended."""

from __future__ import annotations

import inspect
import linecache
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

GRACE_S = 0.2
"""How much later than its limit code may end by itself."""


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
    watch = _Watch(limit_s, answer)

    def run() -> None:
        sys.settrace(watch)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- even exit() is to be told in words
            errors.append(error)
        finally:
            sys.settrace(None)

    # A daemon, because code that waits in the system cannot be ended.
    worker = threading.Thread(target=run, name="exercise", daemon=True)
    try:
        worker.start()
        worker.join(limit_s + GRACE_S)
    except RuntimeError:  # a browser has no threads: there the watch alone keeps the limit
        run()
    finally:  # also after an Interrupt: what goes on would slow down what the next cells measure
        watch.ends = 0.0
    if watch.raised or worker.is_alive():
        return Trial(too_late=True, your_line=watch.your_line)
    if not errors:
        return Trial()
    raised = errors[0].__cause__ or errors[0]
    watch.at = None
    for frame, number in traceback.walk_tb(raised.__traceback__):
        watch.note(frame, number)
    return Trial(errors[0], your_line=watch.your_line)


class _Watch:
    """A trace function (`sys.settrace`): where the learner's code is; ends it when time is up.

    Their code is what stands in their notebook, in whichever cell.
    """

    def __init__(self, limit_s: float, answer: object) -> None:
        function = inspect.unwrap(answer) if callable(answer) else answer
        self.theirs = getattr(function, "__globals__", sys.modules["__main__"].__dict__)
        self.ends = time.monotonic() + limit_s
        self.raised = False
        self.at: tuple[str, int] | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> _Watch | None:
        del event, argument
        if time.monotonic() > self.ends:
            self.raised = True
            raise SystemExit
        self.note(frame, frame.f_lineno)
        # Line by line through their code only: the rest runs at full speed.
        return self if frame.f_globals is self.theirs else None

    def note(self, frame: FrameType, number: int) -> None:
        """Remember a place, if it is theirs."""
        if frame.f_globals is self.theirs:
            self.at = (frame.f_code.co_filename, number)

    @property
    def your_line(self) -> str:
        """The last of their lines that was seen."""
        if self.at is None:
            return ""
        line = linecache.getline(*self.at).strip()
        return f"Your line {self.at[1]}: `{line}`" if line else f"Your line {self.at[1]}."
