"""What an exercise is: a task whose check says what is wrong with this answer, hints, a solution.

Its texts, cases and suspected mistakes stand in `data/exercises`, in one file a notebook. To add
one, write them there; what a table cannot say is a function in `nbNN.py` that is handed the Check.
"""

from __future__ import annotations

import dis
import html
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Literal

from workshop_lib.exercises.check import Check, Table, Wrong, say_error
from workshop_lib.exercises.trial import attempt

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop

LOOKS = {
    "right": ("✓ Right.", "solid"),
    "wrong": ("✗ Not right yet.", "double"),
    "untouched": ("… Not tried yet.", "dotted"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """What a check found, and why in words."""

    state: Literal["right", "wrong", "untouched"]
    message: str

    def __repr__(self) -> str:
        return f"{LOOKS[self.state][0]} {self.message}"

    def _repr_html_(self) -> str:
        # A mark, a word and a kind of line, in the page's own colours, light or dark.
        head, border = LOOKS[self.state]
        text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(self.message))
        style = f"border-left: 5px {border}; padding-left: 0.7em; white-space: pre-wrap"
        return f'<div style="{style}"><b>{head}</b> {text}</div>'


@dataclass(frozen=True, slots=True, repr=False)
class Note:
    """A hint or a solution: a heading, and the text alone."""

    heading: str
    text: str

    def __repr__(self) -> str:
        return f"{self.heading}\n{self.text}"


@dataclass(frozen=True, slots=True, repr=False)
class Exercise:
    """A task of a notebook.

    Attributes:
        id: the notebook's number and the task's, "02.1".
        table: its texts, cases and suspected mistakes.
        judge: raises Wrong unless the answer is right. Its cache keys begin with the workshop's
            namespace, and it removes what it makes.
        note_solved: told its id when an answer is right.

    """

    id: str
    table: Table
    judge: Callable[[Check], None] = Check.try_cases
    note_solved: Callable[[str], None] = field(default=lambda _: None, compare=False)
    _stages: Iterator[int] = field(default_factory=itertools.count, init=False, compare=False)

    def check(self, answer: object = None, ws: Workshop | None = None) -> Verdict:
        """Try the answer. Whatever the answer does, a verdict comes back within the limit."""
        table, name = self.table, self.table.function
        if _is_untouched(answer):
            return Verdict(
                "untouched",
                f"Put your code in place of `...` in `{name}`, run that cell, then "
                f'`exercise("{self.id}").check({name})`. For a start: '
                f'`exercise("{self.id}").hint()`',
            )
        if table.needs_workshop and ws is None:
            usage = f'exercise("{self.id}").check({name}, ws)'
            return Verdict("wrong", f"This check needs the open workshop as well: `{usage}`")
        trial = attempt(lambda: self.judge(Check(table, answer, ws)), table.limit_s, answer)
        if trial.too_late:
            reason = (
                f"`{name}` did not end within {table.limit_s:g} s, and was stopped. "
                "Is it waiting, or looping, for something that never comes?"
            )
        elif trial.error is None:
            self.note_solved(self.id)
            return Verdict("right", table.praise)
        elif isinstance(trial.error, Wrong):
            reason = str(trial.error)
        else:
            reason = f"`{name}` stopped with `{say_error(trial.error)}`."
        return Verdict("wrong", f"{reason}\n{trial.your_line}".rstrip())

    def hint(self) -> Note:
        """The next hint; after the last one, the last one again."""
        stage, most = next(self._stages), len(self.table.hints)
        after = f'\nThe answer: exercise("{self.id}").solution()' if stage >= most else ""
        stage = min(stage, most - 1)
        return Note(f"Hint {stage + 1} of {most}", self.table.hints[stage] + after)

    def solution(self) -> Note:
        """One right answer, as text to run in a cell."""
        return Note(f"# A solution of {self.id}, {self.table.title}", self.table.solution)

    def __repr__(self) -> str:  # without the solution
        use = f".check({self.table.function}), .hint(), .solution()"
        return f"Exercise {self.id}, {self.table.title}: {use}"


def _placeholder() -> None: ...


def _is_untouched(answer: object) -> bool:
    code = getattr(answer, "__code__", None)
    if isinstance(code, CodeType):
        return _steps(code) == _steps(_placeholder.__code__)
    return answer is None or answer is Ellipsis


def _steps(code: CodeType) -> list[tuple[str, object]]:
    """What the code does: a docstring, a comment, `pass` and `...` leave nothing behind."""
    return [(i.opname, i.argval) for i in dis.get_instructions(code) if i.opname != "NOP"]
