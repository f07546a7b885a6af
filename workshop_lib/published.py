"""Figures that others have published, beside one's own: from data/published.csv and .toml."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from workshop_lib.errors import DataError
from workshop_lib.paths import CHECKOUT
from workshop_lib.results import Measurement, Result, format_range

FILE = CHECKOUT / "data" / "published.csv"
BESIDE = CHECKOUT / "data" / "published.toml"


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A duration as published: on AWS, once, by others, with programs of their own.

    Attributes:
        subject: what took this long.
        low_s, high_s: from and to, seconds; equal where one figure is given.
        source: the document, whose it is, and whether its figures were measured or expected.

    """

    subject: str
    low_s: float
    high_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """A published figure and that of a run which is like it.

    Attributes:
        study: the document's short name.
        subject, published: what, and how much, as text.
        notebook: which measures the like.
        figure: what it measured; None if it did not.

    """

    study: str
    subject: str
    published: str
    notebook: str
    figure: Measurement | None


def published_figures(study: str) -> list[PublishedFigure]:
    """The figures of one study, in the order of the file.

    Args:
        study: "cold-warm-pooled" or "store-and-cache".

    Raises:
        DataError: there is no such study; the text lists those that there are.

    """
    with FILE.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    known = sorted({line["study"] for line in lines})
    if study not in known:
        raise DataError(
            f"No figures of the study {study!r} are in data/{FILE.name}, only: {', '.join(known)}"
        )
    return [
        PublishedFigure(line["subject"], *_seconds(line), line["source"])
        for line in lines
        if line["study"] == study
    ]


def beside_published(results: Mapping[str, Result]) -> list[Row]:
    """Published figures beside those of a run that are like them, study by study.

    Args:
        results: by notebook name.

    """
    return [
        Row(study, *_published(study, like["published"]), like["notebook"], _figure(like, results))
        for study, content in studies().items()
        for like in content["like"]
    ]


@cache
def studies() -> dict[str, dict[str, Any]]:
    """What data/published.toml says of each study."""
    return tomllib.loads(BESIDE.read_text(encoding="utf-8"))


def _seconds(line: Mapping[str, str]) -> tuple[float, float]:
    return float(line["low_ms"]) / 1e3, float(line["high_ms"]) / 1e3


def _published(study: str, subjects: list[str]) -> tuple[str, str]:
    """A published figure, or one by another one: of what, and how much."""
    known = {figure.subject: figure for figure in published_figures(study)}
    first, *others = (known[subject] for subject in subjects)
    low, high, unit = first.low_s, first.high_s, "s"
    for other in others:
        low, high, unit = low / other.high_s, high / other.low_s, "times"
    return " ÷ ".join(subjects), format_range(low, high, unit)


def _figure(like: Mapping[str, Any], results: Mapping[str, Result]) -> Measurement | None:
    """The run's; None if it has none, or one that is no duration."""
    try:
        measured = results[like["notebook"]].measurements
        first, *others = (measured[name] for name in like["figures"])
        for other in others:
            first /= other
        return first if first.number > 0 else None
    except (KeyError, TypeError, ArithmeticError):
        return None
