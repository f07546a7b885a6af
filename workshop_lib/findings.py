"""What a run found, in sentences: templates from data/findings.toml, filled with its figures."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from workshop_lib.errors import DataError
from workshop_lib.paths import CHECKOUT
from workshop_lib.results import is_number, ratio, said, said_range

FILE = CHECKOUT / "data" / "findings.toml"
SLOT = re.compile(r"\{([\w-]+)(\.n)?(?::(%|size))?\}")
Figures = Mapping[str, Mapping[str, Any]]
"""Measurements by name, as a result file holds them."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence to be made from a notebook's figures.

    Attributes:
        notebook: whose figures.
        question: what it answers.
        figure: whose interval and sample count go with it, and which decides between `texts`.
        texts: templates: "text", or "more", "less" and "same" as the figure is to `against`.
        against: the value that makes no difference.
        ratios: names for quotients of two figures of the notebook.
        on: services of which is said what they were, where a reader would take them for others.
        first_screen: whether it is one of those that sum up a run.

    """

    notebook: str
    question: str
    figure: str
    texts: Mapping[str, str]
    against: float
    ratios: Mapping[str, tuple[str, str]]
    first_screen: bool
    on: tuple[str, ...] = ()

    @property
    def needs(self) -> set[str]:
        """The figures that the notebook has to record for it."""
        named = {slot[1] for text in self.texts.values() for slot in SLOT.finditer(text)}
        divided = {name for pair in self.ratios.values() for name in pair}
        return ({*named, self.figure} - set(self.ratios)) | divided


@dataclass(frozen=True, slots=True)
class Main:
    """What matters most of a notebook.

    Attributes:
        figures: names as recorded, each with what it is in words.
        picture: a part of the words that go with the most telling picture.

    """

    figures: Mapping[str, str]
    picture: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement about one run.

    Attributes:
        notebook, question: as in the statement.
        parts: the sentence in pieces, each with whether it is a figure; empty if it is missing.
        interval, samples: of its figure; the interval is empty where there is none.
        where: what it was measured on, where a reader would take it for something else.
        missing: why nothing can be said; empty if something can.

    """

    notebook: str
    question: str
    parts: tuple[tuple[str, bool], ...] = ()
    interval: str = ""
    samples: int = 0
    where: str = ""
    missing: str = ""

    @property
    def sentence(self) -> str:
        """All of it as text."""
        return "".join(text for text, _ in self.parts)


@cache
def main_figures() -> dict[str, Main]:
    """What matters most, by notebook."""
    return {
        notebook: Main(content["figures"], content["picture"])
        for notebook, content in _content().items()
        if notebook != "statement"
    }


@cache
def statements() -> tuple[Statement, ...]:
    """All statements, in the order in which they are told."""
    return tuple(_statement(one) for one in _content()["statement"])


def find(statement: Statement, result: Mapping[str, Any] | None) -> Finding:
    """What a statement says of a notebook's result; None if the notebook was not run."""
    about, number = (statement.notebook, statement.question), statement.notebook[:2]
    if result is None:
        return Finding(*about, missing=f"Notebook {number} was not run.")
    if not result["ok"]:
        return Finding(*about, missing=f"Notebook {number} failed.")
    figures = _with_ratios(statement, result["measurements"])
    if absent := sorted(statement.needs - set(figures)):
        return Finding(*about, missing=f"Notebook {number} recorded no {', '.join(absent)}.")
    if statement.figure not in figures:
        return Finding(*about, missing=f"Figures of notebook {number} cannot be divided.")
    shown = figures[statement.figure]
    if "text" not in statement.texts and not is_number(shown["value"]):
        return Finding(*about, missing=f"Notebook {number} recorded no {statement.figure}.")
    template = statement.texts.get("text") or statement.texts[_side(shown, statement.against)]
    interval = "" if shown["low"] is None else between(shown)
    parts = tuple(_filled(template, figures))
    return Finding(*about, parts, interval, shown["n"], _where(statement, result["services"]))


def between(measured: Mapping[str, Any]) -> str:
    """A figure's interval as a person reads it."""
    return said_range(measured["low"], measured["high"], measured["unit"])


def _content() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def _statement(one: Mapping[str, Any]) -> Statement:
    texts = {side: one[side] for side in ("text", "more", "less", "same") if side in one}
    if set(texts) not in ({"text"}, {"more", "less", "same"}):
        raise DataError(
            f"{one['question']!r} in data/{FILE.name} has {', '.join(texts) or 'no text'}: "
            "it takes either text, or more, less and same."
        )
    return Statement(
        one["notebook"],
        one["question"],
        one["figure"],
        texts,
        one.get("against", 1),
        {name: (first, second) for name, (first, second) in one.get("ratios", {}).items()},
        one.get("first_screen", False),
        tuple(one.get("on", ())),
    )


def _where(statement: Statement, services: Mapping[str, Mapping[str, Any]]) -> str:
    """What the services were, if that is not what the rest of the run was on, or not real."""
    used = {kind: services[kind] for kind in statement.on if kind in services}
    labels = {s["label"]: None for s in used.values() if s["emulated"]}
    rest = [s for kind, s in services.items() if kind in {"database", "cache", "store"}]
    if not all(service["embedded"] for service in rest):
        labels |= {s["label"]: None for kind, s in used.items() if kind.startswith("sandbox")}
    return " and ".join(labels)


def _with_ratios(statement: Statement, measured: Figures) -> dict[str, Mapping[str, Any]]:
    figures = dict(measured)
    for name, (first, second) in statement.ratios.items():
        if first in measured and second in measured:
            found = ratio(measured[first], measured[second])
            if found is not None:
                figures[name] = found
    return figures


def _side(measured: Mapping[str, Any], against: float) -> str:
    """Where a figure lies, as far as its interval lets anybody tell."""
    low, high = measured["low"], measured["high"]
    if low is None or high is None:
        low = high = measured["value"]
    if low > against:
        return "more"
    return "less" if high < against else "same"


def _filled(template: str, figures: Figures) -> Iterator[tuple[str, bool]]:
    """The template's pieces, and its figures in their places."""
    place = 0
    for slot in SLOT.finditer(template):
        yield template[place : slot.start()], False
        yield _shown(figures[slot[1]], counted=bool(slot[2]), form=slot[3]), True
        place = slot.end()
    yield template[place:], False


def _shown(measured: Mapping[str, Any], *, counted: bool, form: str | None) -> str:
    value, unit = measured["n" if counted else "value"], measured["unit"]
    if form and is_number(value):
        return f"{value * 100:.0f} %" if form == "%" else said(abs(value), unit, bare=True)
    return said(value, "" if counted else unit, bare=True)
