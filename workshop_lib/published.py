"""Figures that others have published, beside one's own: from data/published.csv and .toml."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import DataError
from workshop_lib.paths import CHECKOUT
from workshop_lib.results import SECONDS, is_number, ratio, said_range

FILE = CHECKOUT / "data" / "published.csv"
BESIDE = CHECKOUT / "data" / "published.toml"
FEW = 10
"""Below so many samples a figure is called rough."""


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
class Beside:
    """A published figure beside that of a run.

    Attributes:
        study, subject: the published figure, or a ratio of two.
        published: as text.
        figure: the run's, as a result file holds it; None if the run has none.
        difference: the run's against the published one, in words; empty without a figure.
        reasons: why they differ, each short and long; the long text may be empty.
        notebook: which measured it, or would have.

    """

    study: str
    subject: str
    published: str
    figure: Mapping[str, Any] | None
    difference: str
    reasons: tuple[tuple[str, str], ...]
    notebook: str


def beside_published(results: Mapping[str, Mapping[str, Any]]) -> list[Beside]:
    """Published figures beside those of a run, in the order of data/published.toml.

    Args:
        results: by notebook name, as result files hold them.

    """
    content = tomllib.loads(BESIDE.read_text(encoding="utf-8"))
    found = []
    for one in content["beside"]:
        result, known = results.get(one["notebook"]), _published(one)
        figure = _figure(one["figures"], result) if result is not None and result["ok"] else None
        difference = ""
        why: tuple[tuple[str, str], ...] = ()
        if figure is not None and result is not None:
            value = figure["value"] * SECONDS.get(figure["unit"], 1)
            difference = _difference(value, known)
            why = tuple(_reasons(one, result, figure, content["reasons"]).items())
        unit = "times" if "per" in one else "s"
        published, subject = said_range(*known, unit), one.get("name", one["subject"])
        found.append(
            Beside(one["study"], subject, published, figure, difference, why, one["notebook"])
        )
    return found


def published_figures(study: str) -> list[PublishedFigure]:
    """The figures of one study, in the order of the file.

    Args:
        study: "cold-warm-pooled" or "store-and-cache".

    Raises:
        DataError: there is no such study; the text lists those that there are.

    """
    with FILE.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = [
        PublishedFigure(
            line["subject"],
            float(line["low_ms"]) / 1e3,
            float(line["high_ms"]) / 1e3,
            line["source"],
        )
        for line in lines
        if line["study"] == study
    ]
    if not found:
        known = ", ".join(sorted({line["study"] for line in lines}))
        raise DataError(f"No figures of the study {study!r} are in data/{FILE.name}, only: {known}")
    return found


def _published(one: Mapping[str, Any]) -> tuple[float, float]:
    """From and to; seconds, or a ratio."""
    known = {figure.subject: figure for figure in published_figures(one["study"])}
    figure = known[one["subject"]]
    if "per" not in one:
        return figure.low_s, figure.high_s
    per = known[one["per"]]
    return figure.low_s / per.high_s, figure.high_s / per.low_s


def _figure(names: list[str], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    measured = [result["measurements"].get(name) for name in names]
    if None in measured:
        return None
    found = measured[0] if len(measured) == 1 else ratio(*measured)
    return found if found and is_number(found["value"]) and found["value"] > 0 else None


def _difference(value: float, known: tuple[float, float]) -> str:
    """How many times a value is more or less than what was published.

    >>> _difference(2.0, (2.0, 4.0)), _difference(0.5, (2.0, 4.0)), _difference(6.0, (2.0, 4.0))
    ('as much', '4.0 to 8.0 times less', '1.5 to 3.0 times more')
    """
    low, high = known
    if low <= value <= high:
        return "as much"
    factors = (low / value, high / value) if value < low else (value / high, value / low)
    ends = dict.fromkeys(f"{factor:.{1 if factor < 10 else 0}f}" for factor in factors)
    return f"{' to '.join(ends)} times {'less' if value < low else 'more'}"


def _reasons(
    one: Mapping[str, Any],
    result: Mapping[str, Any],
    figure: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> dict[str, str]:
    """Why this figure differs: by what the services were, and by how it was measured."""
    found = {one["why"]: ""} if "why" in one else {}
    places = {}
    for service in one["services"]:
        info = result["services"].get(service)
        if info is not None:
            places[service] = _place(info)
    for place in ("local", "aws"):
        if f"why_{place}" in one and set(places.values()) == {place}:
            found[one[f"why_{place}"]] = ""
    measured = {"single": figure["n"] == 1, "few": 1 < figure["n"] < FEW}
    measured["crowded"] = result.get("workers", 1) > 1
    chosen = [*places.items(), *(("any", name) for name, holds in measured.items() if holds)]
    for service, name in chosen:
        text = texts[service][name]
        found[text["short"]] = text["long"]
    return found


def _place(service: Mapping[str, Any]) -> str:
    if service["emulated"]:
        return "emulated"
    if service["embedded"]:
        return "local"
    return "aws" if service.get("aws") else "own"
