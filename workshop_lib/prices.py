"""Prices from a dated file: data/prices.toml, or one of your own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pandas as pd

from workshop_lib.costs import Prices
from workshop_lib.errors import DataError
from workshop_lib.paths import FILES

FILE = FILES / "data" / "prices.toml"


@dataclass
class Price:
    """One price, in US dollars; what for, whose page says so, and when it was looked up."""

    usd: Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
    unit: str = "–"
    source: str = "–"
    checked: Any = "–"


ABOUT = {"region": str, "as_of": date}
PriceFile = msgspec.defstruct(
    "PriceFile",
    [(field.name, ABOUT.get(field.name, Price)) for field in fields(Prices)],
    forbid_unknown_fields=True,
)


def load_prices(path: str | Path = FILE) -> Prices:
    """The prices of a file, each with its Region and day.

    Args:
        path: a TOML file of the form of data/prices.toml.

    Raises:
        DataError: it cannot be read, or a price is missing, unknown, or no number of dollars.

    """
    found = _read(path).items()
    given: Any = {k: v.usd if isinstance(v, Price) else v for k, v in found}
    return Prices(**given)


def price_list(path: str | Path = FILE) -> pd.DataFrame:
    """The prices of a file to read: a row each, with US dollars, unit, source and day of check.

    Raises:
        DataError: as `load_prices`.

    """
    prices = {name: price for name, price in _read(path).items() if isinstance(price, Price)}
    table = pd.DataFrame.from_dict(prices, orient="index").astype({"checked": str})
    table["usd"] = [f"{usd:.10f}".rstrip("0").rstrip(".") for usd in table["usd"]]
    return table.rename(columns={"usd": "USD"})


def _read(path: str | Path) -> dict[str, Any]:
    """What a file says: each price, and what all have in common."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return msgspec.structs.asdict(msgspec.convert(content, PriceFile))
    except (OSError, ValueError) as error:  # msgspec's and tomllib's are such
        raise DataError(f"The prices in {path} cannot be read: {error}.") from None
