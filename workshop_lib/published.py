"""Figures that others have published, to set beside one's own: from data/published.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from workshop_lib.errors import DataError
from workshop_lib.settings import CHECKOUT

FILE = CHECKOUT / "data" / "published.csv"


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A duration as published: measured on AWS, once, by others, with programs of their own.

    Attributes:
        subject: what took this long.
        low_s, high_s: from and to, seconds; equal where one figure is given.
        source: the document.

    """

    subject: str
    low_s: float
    high_s: float
    source: str


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
