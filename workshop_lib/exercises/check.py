"""One check of an answer: cases to try it with, mistakes to recognise, and what to say to each.

The official solution is the yardstick: what it does in a case is what is expected of the answer.
A suspected mistake is the solution with an edit, so that an answer which does the same in every
case can be told what it does. Other mistakes are conditions on what was seen.
"""

from __future__ import annotations

import inspect
import math
import pickle
import string
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from numbers import Integral, Real
from types import CodeType
from typing import Any, NoReturn, TypeAlias

import msgspec

MAX_SHOWN = 120
ROUNDED = 0.01
ODD = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What a condition may raise for a value that it was not written for."""
PLAIN = (str, bytes, dict, set, frozenset, list, tuple)
Function: TypeAlias = Callable[..., Any]


class Wrong(BaseException):
    """What is wrong with an answer, with `code` in back-ticks. No `except Exception` hides it."""


class Suspect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suspected mistake.

    Attributes:
        wrong: edits of the solution (old text to new), or the whole source of another function.
        say: what an answer that does the same is told.

    """

    wrong: dict[str, str] | str
    say: str


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exercise as its data file has it. Its texts are f-strings; `{value!r}` is cut if long.

    Attributes:
        function: the name of what the placeholder and the solution define.
        hints: from vague to nearly there.
        solution: Python text that defines the function.
        praise: what a right answer is told: why it is right, and what comes next.
        given: Python text that defines the names that cases, mistakes and texts use.
        cases: each a call or more as text, and, if it needs one, a reason in words at the end.
        suspects: mistakes, in the order in which they are looked for.
        otherwise: what a wrong answer is told that is like no suspect.
        mistakes: by stage of a check, conditions on what was seen, and what to say. Those of
            "returned" know the parameters, `got`, `expected`, and whether it is `right`.
        several_right: whether what has no such mistake is right, whatever the solution returns.
        says: other texts, by name.
        errors: advice, by a part of the error with which an answer stopped.
        within: by how much a number may differ.
        read_only: why the arguments are to be left alone; empty if they may be changed.
        limit_s: how long the check may take, seconds.

    """

    title: str
    function: str
    hints: list[str]
    solution: str
    praise: str
    given: str = ""
    cases: list[list[str]] = []
    suspects: list[Suspect] = []
    otherwise: str = ""
    mistakes: dict[str, list[tuple[str, str]]] = {}
    several_right: bool = False
    says: dict[str, str] = {}
    errors: dict[str, str] = {}
    within: float = 1e-9
    read_only: str = ""
    needs_workshop: bool = False
    limit_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to: a value, or an error; and its arguments as they are afterwards."""

    value: Any = None
    error: Exception | None = None
    arguments: tuple[Any, ...] = ()

    def fits(self, expected: Outcome, within: float) -> bool:
        """Whether this is as good as what is expected; of an error, the class counts."""
        if expected.error is not None or self.error is not None:
            return expected.error is not None and isinstance(self.error, type(expected.error))
        return _same(self.value, expected.value, within)


@dataclass(slots=True)
class Case:
    """A call, and what came of it.

    Attributes:
        shown: the call in words.
        arguments: what it is made with.
        why: why it is a case of its own.
        draws: how often it is tried; twice, to compare, unless chance plays a part.

    """

    shown: str
    arguments: tuple[Any, ...]
    why: str = ""
    draws: int = 2
    expected: Outcome = Outcome()
    got: Outcome = Outcome()


class Check:
    """An answer under test.

    Attributes:
        ws: the open workshop, or None.
        solution: the official one, as a function.
        facts: what conditions and texts may name, such as `call`, the call in words, and `check`.

    """

    def __init__(self, table: Table, answer: object, ws: Any) -> None:
        self.table, self.ws, self.name = table, ws, table.function
        self.facts: dict[str, Any] = {**run(table.given), "call": f"`{self.name}`", "check": self}
        self.solution = define(table.solution, self.name)
        self.signature = inspect.signature(self.solution)
        self.answer = self._require_function(answer)

    # What to say.

    def judge(self, stage: str, cause: BaseException | None = None, /, **facts: Any) -> None:
        """End the check if the answer has made one of the mistakes of this stage."""
        if text := self.mistake(stage, **facts):
            raise Wrong(text) from cause

    def mistake(self, stage: str, /, **facts: Any) -> str:
        """What to say of the first mistake that was made, if one was."""
        self.facts |= facts
        mistakes = {"returned": [], **self.table.mistakes}[stage]
        try:
            found = next((text for condition, text in mistakes if self.value(condition)), "")
            return _Text().format(found, **self.facts)
        except ODD:
            got = self.facts.get("got")
            return f"`{show(got)}`, of type `{type(got).__name__}`, is not what was asked for."

    def say(self, name: str, /, **facts: Any) -> str:
        """One of the table's other texts."""
        return _Text().format(self.table.says[name], **{**self.facts, **facts})

    def stop(self, error: BaseException) -> NoReturn:
        """End the check because the answer raised an error."""
        text = f"{self.facts['call']} stopped with `{say_error(error)}`."
        raise Wrong(" ".join([text, *self._advice(text)])) from error

    # Calls.

    def attempt(self, *arguments: Any) -> Outcome:
        """What the answer does with these very arguments."""
        return _call(self.answer, arguments)

    def attempt_elsewhere(self, *arguments: Any) -> Outcome:
        """What the answer does in another Python process, where strings have another `hash`."""
        names = getattr(self.answer, "__globals__", {})
        before = {"hash": names["hash"]} if "hash" in names else {}
        names["hash"] = _hash_elsewhere
        try:
            return self.attempt(*arguments)
        finally:
            del names["hash"]
            names |= before

    def uses(self, name: str) -> bool:
        """Whether the answer's own code names this attribute or global."""
        return name in getattr(getattr(self.answer, "__code__", None), "co_names", ())

    def call(self, *arguments: Any, shown: str) -> Any:
        """What the answer returns; the check ends if it raises an error."""
        self.facts["call"] = shown
        outcome = self.attempt(*arguments)
        if outcome.error is not None:
            self.stop(outcome.error)
        return outcome.value

    def value(self, expression: str, **names: object) -> Any:
        """What an expression of the table comes to."""
        return eval(_compile(expression), {**self.facts, **names})  # noqa: S307 - our own data

    def arguments(self, call: str, **names: object) -> tuple[Any, ...]:
        """The arguments of a call that is given as text, in the order of the parameters."""

        def bind(*values: Any, **named: Any) -> tuple[Any, ...]:
            return self.signature.bind(*values, **named).args

        return tuple(self.value(call, **{self.name: bind}, **names))

    # Cases.

    def try_cases(self, cases: Sequence[Case] = ()) -> None:
        """Compare the answer with the solution, case by case, and tell the first difference."""
        tried: list[Case] = []
        for case in cases or self._cases():
            case.expected = _call(self.solution, copy(case.arguments))
            self._try(case)
            tried.append(case)
            if case.got.error is not None and case.expected.error is None:
                break
        for case in tried:
            if difference := self._compare(case):
                self._tell(case, difference, tried)

    def _cases(self) -> list[Case]:
        rows = self.table.cases
        return [Case(f"`{call}`", self.arguments(call), " ".join(why)) for call, *why in rows]

    def _try(self, case: Case) -> None:
        """Call the answer several times; what counts is the first time that it is wrong."""
        outcomes = [self.attempt(*copy(case.arguments)) for _ in range(case.draws)]
        for case.got in outcomes:
            self._require_unchanged(case)
            if self._compare(case):
                break
        first, last = outcomes[0], outcomes[-1]
        if case.draws == 2 and not last.fits(first, self.table.within) and self._compare(case):
            again = self.table.says.get("again", "Keep nothing from one call to the next.")
            came = f"{_came(first)}, then {_came(last)}"
            raise Wrong(
                f"{case.shown} was called twice and {came}. Expected: the same both times. {again}"
            )

    def _compare(self, case: Case) -> str:
        """What is wrong with an outcome; empty if it is right."""
        expected, got = case.expected, case.got
        right = got.fits(expected, self.table.within)
        names = dict(zip(self.signature.parameters, case.arguments, strict=False))
        values = {"got": got.value, "expected": expected.value, "error": got.error}
        if text := self.mistake("returned", right=right, **names, **values):
            return text
        if right or (self.table.several_right and got.error is None):
            return ""
        if expected.error is not None:
            return f"Expected: a `{type(expected.error).__name__}` that says what is wrong."
        return f"Expected: `{_short(expected.value)}`."

    def _require_unchanged(self, case: Case) -> None:
        rows = zip(self.signature.parameters, case.arguments, case.got.arguments, strict=False)
        for name, before, after in rows:
            if self.table.read_only and before != after:
                raise Wrong(
                    f"{case.shown} changed its argument `{name}`, which is now `{show(after)}`. "
                    f"{self.table.read_only}"
                )

    def _tell(self, case: Case, difference: str, tried: list[Case]) -> NoReturn:
        """End the check with what came, what is wrong with it, and what is suspected."""
        head, line, rest = difference.partition("\n")
        came, value, expected = _came(case.got), case.got.value, case.expected.value
        told = [head, case.why]
        if case.got.error is not None:
            told += self._advice(came)
        elif value is None and "`None`" not in head:
            told.append("Is there a `return`?")
        else:
            told.append(self._suspicion(tried) or ("" if case.why else self.table.otherwise))
            if expected is not None and type(value) is not type(expected):
                came += f", of type `{type(value).__name__}`"
        words = " ".join(text.strip() for text in (f"{case.shown} {came}.", *told) if text)
        raise Wrong(words + line + rest) from case.got.error

    def _suspicion(self, tried: list[Case]) -> str:
        """What is to be said of the first suspect that does the same as the answer, if one does."""
        # It is found as well where None has been forgotten besides.
        for some in (tried, [case for case in tried if case.expected.value is not None]):
            for suspect in self.table.suspects:
                rule = vary(self.table, suspect.wrong)
                found = [(case.got, _call(rule, copy(case.arguments))) for case in some]
                if found and all(got.fits(same, self.table.within) for got, same in found):
                    return suspect.say
        if all(case.got.fits(case.expected, ROUNDED) for case in tried):
            return "Do you round? Return the number with all its digits."
        return ""

    def _advice(self, text: str) -> list[str]:
        return [say for part, say in self.table.errors.items() if part in text]

    def _require_function(self, answer: object) -> Function:
        name, parameters = self.name, self.signature.parameters
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
            text = f"The check calls `{name}({', '.join(parameters)})`"
            raise Wrong(f"{text}; yours is `{name}{signature}`: {error}.") from None
        return answer


class Recorder:
    """A function to hand to an answer: it notes what it is called with, then does as told."""

    def __init__(self, does: Function) -> None:
        self.does = does
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        """Note the arguments, and do as told."""
        self.calls.append(arguments)
        return self.does(*arguments)


def vary(table: Table, wrong: dict[str, str] | str) -> Function:
    """A mistaken function: the solution with edits, or another source."""
    if isinstance(wrong, str):
        return define(wrong, table.function)
    source = table.solution
    for old, new in wrong.items():
        if old not in source:
            raise LookupError(f"the solution of {table.function} has no {old!r}")
        source = source.replace(old, new)
    return define(source, table.function)


def define(source: str, name: str) -> Function:
    """The function that a text defines."""
    function: Function = run(source)[name]
    return function


def run(source: str) -> dict[str, Any]:
    """The names that a text defines."""
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - from our own data file
    return names


def show(value: object) -> str:
    """The value as Python writes it, cut to what can be read at a glance."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} …"


def say_error(error: BaseException | None) -> str:
    """Class and first line of an error, and its SQLSTATE, if it is one of the database."""
    if error is None:
        return "nothing"
    text = "".join(traceback.format_exception_only(error)).partition("\n")[0].rstrip(".")
    text = text.replace("`", "'")  # it stands in back-ticks
    code = getattr(error, "pgcode", None)
    return f"{text} (SQLSTATE {code})" if code else text


class _Text(string.Formatter):
    def get_field(self, field_name: str, _args: Any, kwargs: Any) -> tuple[Any, str]:
        return eval(field_name, dict(kwargs)), field_name  # noqa: S307 - our own data

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return show(value) if conversion == "r" else super().convert_field(value, conversion)


@cache
def _compile(expression: str) -> CodeType:
    return compile(expression, "<table>", "eval")


def copy(arguments: tuple[Any, ...]) -> Any:
    """A copy, quicker than that of `copy`, whose every step the watch on the answer would see."""
    return pickle.loads(pickle.dumps(arguments))  # noqa: S301 - our own


def _call(function: Function, arguments: tuple[Any, ...]) -> Outcome:
    try:
        value = function(*arguments)
        if isinstance(value, Iterable) and not isinstance(value, PLAIN):
            value = list(value)  # of a generator, what it yields
    except Exception as error:  # noqa: BLE001 -- which one it is, is what is judged
        return Outcome(error=error, arguments=arguments)
    return Outcome(value, arguments=arguments)


def _hash_elsewhere(value: Any) -> int:
    """The `hash` of a process with another seed: numbers and None keep theirs."""
    if value is None or isinstance(value, int | float):
        return hash(value)
    if isinstance(value, tuple | frozenset):
        return hash(type(value)(map(_hash_elsewhere, value)))
    return hash(("another process", value))


def _same(got: object, expected: object, within: float) -> bool:
    """Equal; numbers of any type nearly so, but where an integer is expected, only an integer."""
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        pairs = zip(got, expected, strict=False)
        return len(got) == len(expected) and all(_same(*pair, within) for pair in pairs)
    if not _is_number(expected) or not _is_number(got):
        return type(got) is type(expected) and got == expected
    if isinstance(expected, int):
        return isinstance(got, Integral) and got == expected
    return math.isclose(got, expected, rel_tol=1e-6, abs_tol=within)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def _short(value: object) -> str:
    return repr(float(f"{value:.6g}")) if isinstance(value, float) else show(value)


def _came(got: Outcome) -> str:
    if got.error is not None:
        return f"stopped with `{say_error(got.error)}`"
    return f"returned `{show(got.value)}`"
