"""Figures that others have published, from data/published.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache

import msgspec

from workshop_lib.errors import DataError
from workshop_lib.paths import FILES
from workshop_lib.results import SECONDS, Measurement

FILE = FILES / "data" / "published.toml"


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A figure as published: on AWS, once, by others, with programs of their own.

    Attributes:
        subject: of what.
        low, high: from and to; equal where one figure is given.
        unit: of both.
        notebook, like: whose measurements give a figure like it, by which expression; or empty.

    """

    subject: str
    low: float
    high: float
    unit: str = "ms"
    notebook: str = ""
    like: str = ""

    @property
    def low_s(self) -> float:
        """The least of a duration, seconds."""
        return self.low * SECONDS[self.unit]

    @property
    def high_s(self) -> float:
        """The most of a duration, seconds."""
        return self.high * SECONDS[self.unit]

    def __str__(self) -> str:
        return Measurement(self.low, self.unit, 1, self.low, self.high).interval


@dataclass(frozen=True, slots=True)
class Study:
    """A document; each attribute as in the file's heading."""

    source: str
    services: dict[str, str]
    about: str
    figures: list[PublishedFigure]


def published_figures(study: str) -> list[PublishedFigure]:
    """The durations of one study, in the order of the file.

    Args:
        study: "cold-warm-pooled" or "store-and-cache".

    Raises:
        DataError: there is no such study; the text lists those that there are.

    """
    known = studies()
    if study not in known:
        raise DataError(f"data/{FILE.name} has no study {study!r}, only: {', '.join(known)}.")
    return [one for one in known[study].figures if one.unit in SECONDS]


@cache
def studies() -> dict[str, Study]:
    """What the file says, by study."""
    return msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), dict[str, Study])
