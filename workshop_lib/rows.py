"""The rows a query returned, the same whether they came from the database or from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = tuple[object, ...]
Params: TypeAlias = Mapping[str, object] | Sequence[object] | None
"""Values for the placeholders of a statement: %(name)s takes a mapping, %s a sequence."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns and rows of one result.

    Attributes:
        columns: the column names, in order.
        rows: one tuple a row, with Python types (Decimal, date, UUID, …).
        seconds: from asking until the last row was here, waiting for a connection included.

    """

    columns: tuple[str, ...]
    rows: list[Row]
    seconds: float

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def as_dicts(self) -> list[dict[str, object]]:
        """Each row as a dict from column name to value."""
        # A row is as long as the columns; zip's `strict` would take a quarter of the time.
        return list(map(dict, map(zip, repeat(self.columns), self.rows)))

    def to_frame(self) -> pd.DataFrame:
        """The result as a pandas frame; Decimal and date columns stay objects."""
        import pandas as pd  # noqa: PLC0415 -- the engines' supervisor reads this as well

        return pd.DataFrame(self.rows, columns=list(self.columns))

    def _repr_html_(self) -> str:
        """What a notebook shows for a result: the first ten rows."""
        if not self.columns:
            return "<p>Done. This statement returns no rows.</p>"
        shown = self.to_frame().head(10).to_html(index=False)
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows):,} rows"
        columns = "1 column" if len(self.columns) == 1 else f"{len(self.columns)} columns"
        return f"{shown}<p>{rows} × {columns}</p>"


_AS_PYTHON_HAS_IT = {"M": "M8[us]", "m": "m8[us]", "f": "f8", "c": "c16"}
"""Types of numpy by their kind: Python has no nanoseconds, and no numbers of 128 bits."""


def to_python(value: Any) -> Any:
    """What a value of numpy or pandas is in Python; any other one as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind and hasattr(value, "tolist"):
        exact = value.astype(_AS_PYTHON_HAS_IT[kind]) if kind in _AS_PYTHON_HAS_IT else value
        return exact.tolist()
    name = type(value).__name__
    if name in {"NaTType", "NAType"}:
        return None
    if name == "Timestamp" and hasattr(value, "to_pydatetime"):
        return value.to_pydatetime(warn=False)
    return value
