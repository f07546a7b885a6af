"""Where this checkout is, and how its files are named to a reader."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds `notebooks/`; results and the state folder's name derive from it."""


def display_path(path: Path) -> str:
    """A path as it is written from the checkout, if it lies in there."""
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)
