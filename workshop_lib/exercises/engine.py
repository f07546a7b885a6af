"""What an exercise is: a task whose check says what is wrong with this answer, hints, a solution.

To add one, write a function that is handed the answer and the open workshop (or None), tries the
answer with several inputs, and raises `Wrong` for the first that fails: see `nb02.py`.
"""

from __future__ import annotations

import dis
import html
import inspect
import itertools
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

from workshop_lib.exercises.trial import attempt

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop

LIMIT_S = 10.0
MOST_SHOWN = 120
LOOKS = {
    "right": ("✓ Right.", "solid"),
    "wrong": ("✗ Not right yet.", "double"),
    "untouched": ("… Not tried yet.", "dotted"),
}


class Wrong(Exception):  # noqa: N818 - it reads as what it says of the answer
    """What is wrong with an answer, why, and what to look at, with `code` in back-ticks."""


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
        answer_name: what the placeholder and the solution define.
        judge: called with the answer and the open workshop (or None); raises Wrong unless the
            answer is right. Its cache keys begin with the workshop's namespace, and it removes
            what it makes.
        hints: from vague to nearly there.
        solution_source: Python text that defines the answer.
        praise: what a right answer is told: why it is right, and what comes next.
        needs_workshop: whether the judge cannot do without the open workshop.
        limit_s: how long the judge may take, seconds.

    """

    id: str
    title: str
    answer_name: str
    judge: Callable[[Any, Any], None]
    hints: tuple[str, ...]
    solution_source: str
    praise: str
    needs_workshop: bool = False
    limit_s: float = LIMIT_S
    _stages: Iterator[int] = field(default_factory=itertools.count, init=False, compare=False)

    def check(self, answer: object, ws: Workshop | None = None) -> Verdict:
        """Try the answer. Whatever the answer does, a verdict comes back within the limit."""
        name = self.answer_name
        if _is_untouched(answer):
            return Verdict(
                "untouched",
                f"Put your code in the place of `...` in `{name}`, run that cell, then this one "
                f'again. For a start: `exercise("{self.id}").hint()`',
            )
        if self.needs_workshop and ws is None:
            usage = f'exercise("{self.id}").check({name}, ws)'
            return Verdict("wrong", f"This check needs the open workshop as well: `{usage}`")
        trial = attempt(lambda: self.judge(answer, ws), self.limit_s, answer)
        if trial.error is None and not trial.too_late:
            return Verdict("right", self.praise)
        if trial.too_late:
            reason = (
                f"`{name}` did not end within {self.limit_s:g} s, and was stopped. "
                "Does it wait, or loop, for something that never comes?"
            )
        elif isinstance(trial.error, Wrong):
            reason = str(trial.error)
        else:
            reason = f"`{name}` stopped with {_say(trial.error)}"
        return Verdict("wrong", f"{reason}\n{trial.your_line}".rstrip())

    def hint(self) -> Note:
        """The next hint; after the last one, the last one again."""
        stage, most = next(self._stages), len(self.hints)
        after = f'\nThe answer: exercise("{self.id}").solution()' if stage >= most else ""
        stage = min(stage, most - 1)
        return Note(f"Hint {stage + 1} of {most}", self.hints[stage] + after)

    def solution(self) -> Note:
        """One right answer, as text to run in a cell."""
        return Note(f"# A solution of {self.id}, {self.title}", self.solution_source)

    def __repr__(self) -> str:  # without the solution
        return f"Exercise {self.id}, {self.title}: .check({self.answer_name}), .hint(), .solution()"


def function_of(answer: object, name: str, *parameters: str) -> Callable[..., Any]:
    """The answer as a function that takes these parameters.

    Raises:
        Wrong: it is something else.

    """
    if not callable(answer):
        raise Wrong(
            f"The check needs the function `{name}` itself and was given `{show(answer)}`. "
            f"Write `check({name})`, with no brackets after the name."
        )
    if inspect.iscoroutinefunction(answer):
        raise Wrong(f"`{name}` is asynchronous. What is asked for is a plain `def {name}`.")
    signature = inspect.signature(answer)
    try:
        signature.bind(*parameters)
    except TypeError as error:
        usage = f"{name}({', '.join(parameters)})"
        raise Wrong(f"The check calls `{usage}`; yours is `{name}{signature}`: {error}.") from None
    return answer


def call(shown: str, function: Callable[..., Any], *arguments: object) -> Any:
    """What the learner's function returns; `shown` is the call in words, should it raise.

    Raises:
        Wrong: the function raised an error; that error is the cause.

    """
    try:
        return function(*arguments)
    except Exception as error:
        raise Wrong(f"{shown} stopped with {_say(error)}") from error


def show(value: object) -> str:
    """The value as Python writes it, cut to what can be read at a glance."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"


def _placeholder() -> None: ...


def _is_untouched(answer: object) -> bool:
    code = getattr(answer, "__code__", None)
    if isinstance(code, CodeType):
        return _steps(code) == _steps(_placeholder.__code__)
    return answer is None or answer is Ellipsis


def _steps(code: CodeType) -> list[tuple[str, object]]:
    """What the code does: a docstring, a comment, `pass` and `...` leave nothing behind."""
    return [(i.opname, i.argval) for i in dis.get_instructions(code) if i.opname != "NOP"]


def _say(error: BaseException | None) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
