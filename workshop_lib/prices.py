"""Prices from a dated file: data/prices.toml, or one of your own."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from workshop_lib.costs import Prices
from workshop_lib.errors import DataError
from workshop_lib.paths import FILES

FILE = FILES / "data" / "prices.toml"
ABOUT = {"region": str, "as_of": date}


def price_list(path: str | Path = FILE) -> pd.DataFrame:
    """The prices of a file to read: a row each, with US dollars, unit, source and day of check.

    Raises:
        DataError: as `load_prices`.

    """
    load_prices(path)
    found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    rows = {name: price for name, price in found.items() if name not in ABOUT}
    return pd.DataFrame(
        {
            "USD": [f"{price['usd']:.10f}".rstrip("0").rstrip(".") for price in rows.values()],
            **{
                column: [str(price.get(column, "–")) for price in rows.values()]
                for column in ("unit", "source", "checked")
            },
        },
        index=list(rows),
    )


def load_prices(path: str | Path = FILE) -> Prices:
    """The prices of a file, each with its Region and day.

    Args:
        path: a TOML file of the form of data/prices.toml.

    Raises:
        DataError: it cannot be read, or a price is missing, unknown, or no number of dollars.

    """
    try:
        found: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"The prices in {path} cannot be read: {error}.") from None
    wanted = [field.name for field in fields(Prices)]
    if missing := [name for name in wanted if name not in found]:
        raise DataError(f"{path} has no {', '.join(missing)}. data/{FILE.name} shows the form.")
    if unknown := sorted(set(found) - set(wanted)):
        raise DataError(f"{path} has {', '.join(unknown)}, which nothing here is charged by.")
    return Prices(**{name: _value(name, found[name], path) for name in wanted})


def _value(name: str, given: Any, path: str | Path) -> Any:
    if name in ABOUT:
        if type(given) is ABOUT[name]:
            return given
        raise DataError(f"{name} in {path} is {given!r}; it must be a {ABOUT[name].__name__}.")
    usd = given.get("usd") if isinstance(given, dict) else None
    if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 <= usd < 1e6:
        raise DataError(f"{name} in {path} has usd = {usd!r}; it must be a number of dollars.")
    return float(usd)
