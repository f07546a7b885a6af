"""What a run found, in sentences: Jinja snippets from data/findings.toml, given its figures."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import jinja2
import msgspec
from markupsafe import Markup

from workshop_lib.errors import ResultError
from workshop_lib.paths import FILES
from workshop_lib.results import Measurement, Result, format_value

FILE = FILES / "data" / "findings.toml"
NOT_THERE = (jinja2.UndefinedError, TypeError, ValueError, ArithmeticError, ResultError)


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence to be made from a notebook's figures; each attribute as in the file's heading."""

    notebook: str
    question: str
    figure: str
    text: str
    headline: Literal["quick", "full", ""] = ""
    on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement about one run.

    Attributes:
        statement: what it answers.
        sentence: the answer as HTML, its figures marked; empty if it is missing.
        figure: the one that carries it.
        where: what the services were, where a reader could take them for others.
        missing: why nothing can be said; empty if something can.
        headline: whether it may stand at the top of the page: its figure has an interval, and can
            be trusted at the size of its run.

    """

    statement: Statement
    sentence: str = ""
    figure: Measurement | None = None
    where: str = ""
    missing: str = ""
    headline: bool = False


@cache
def statements() -> list[Statement]:
    """What data/findings.toml says, in the order in which it is told."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return msgspec.convert(content["statement"], list[Statement])


def find(statement: Statement, result: Result) -> Finding:
    """What a statement says of the result of its notebook, which passed."""
    try:
        figure = evaluate(statement.figure, result)
        text = _language().from_string(statement.text)
        sentence = text.render(_known(result), figure=figure, n=figure.n)
    except NOT_THERE as error:
        number = statement.notebook[:2]
        missing = f"Notebook {number} did not record what it takes: {error}."
        return Finding(statement, missing=missing)
    labels = [str(result.services.get(kind, {}).get("label", "")) for kind in statement.on]
    where = " and ".join(dict.fromkeys(filter(None, labels)))
    enough = {"quick"} if result.size == "quick" else {"quick", "full"}
    headline = bool(figure.interval) and statement.headline in enough
    return Finding(statement, sentence, figure, where, headline=headline)


def evaluate(expression: str, result: Result) -> Measurement:
    """A figure of a result by its name, or worked out from several.

    Raises:
        One of `NOT_THERE`: it was not recorded, or is nothing to calculate with.

    """
    compiled: Any = _language().compile_expression(expression, undefined_to_none=False)
    found = compiled(_known(result))
    if not isinstance(found, Measurement):
        raise TypeError(f"{expression} is not a figure")
    return found


def share(figure: Measurement) -> Measurement:
    """A count of n, or a ratio of n, in per cent, with Wilson's interval (Wilson 1927).

    It takes the n for independent of each other.

    >>> arrived = share(Measurement(24, "increments", 128))
    >>> str(arrived), arrived.interval
    ('18.8 %', '12.9 to 26.4 %')
    """
    n, z = figure.n, NormalDist().inv_cdf(0.975)
    p = figure.number / n if figure.unit else figure.number
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + end) / (1 + z * z / n) for end in (-half, half))
    return Measurement(p * 100, "%", n, max(low, 0.0) * 100, min(high, 1.0) * 100)


@cache
def _language() -> jinja2.Environment:
    """Jinja, in which a figure is written with its unit, and marked."""
    found = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_mark, trim_blocks=True
    )
    found.globals["share"] = share
    found.tests["above"] = lambda figure, limit: _end(figure, figure.low) > limit
    found.tests["below"] = lambda figure, limit: _end(figure, figure.high) < limit
    return found


def _known(result: Result) -> dict[str, Any]:
    return {**result.measurements, "figures": result.measurements}


def _mark(said: Any) -> Any:
    """What a figure is written as: not what stands in the snippet itself."""
    if isinstance(said, Measurement):
        return Markup("<strong>{}</strong>").format(str(said))
    return format_value(said) if isinstance(said, int) else said


def _end(figure: Measurement, end: float | None) -> float:
    return figure.number if end is None else end
