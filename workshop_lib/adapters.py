"""Values of numpy and pandas as parameters of a statement: what they are in Python."""

from __future__ import annotations

import sys
from typing import Any

from psycopg2.extensions import AsIs, adapt, register_adapter

_registered: set[str] = set()


def register() -> None:
    """Have psycopg2 adapt the values of numpy and pandas, once each has been imported.

    Not before: importing them takes longer than all the rest. psycopg2 keeps adapters for the
    whole process; without these it writes such values as Python shows them: np.float64(1.5).
    """
    if "numpy" in sys.modules and "numpy" not in _registered:
        numpy = sys.modules["numpy"]
        register_adapter(numpy.generic, _adapt)
        register_adapter(numpy.ndarray, _adapt)
        _registered.add("numpy")
    if (
        "pandas" in sys.modules
        and hasattr(sys.modules["pandas"], "NA")
        and "pandas" not in _registered
    ):
        pandas = sys.modules["pandas"]
        for absent in (pandas.NaT, pandas.NA):
            register_adapter(type(absent), lambda _: AsIs("NULL"))
        _registered.add("pandas")


def to_python(value: Any) -> Any:
    """What a value of numpy or pandas is in Python; any other one as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind and hasattr(value, "tolist"):
        # Nanoseconds are no part of Python's times, nor of PostgreSQL's: they would become numbers.
        exact = value.astype(f"{value.dtype.kind}8[us]") if kind in "mM" else value
        return exact.tolist()
    name = type(value).__name__
    if name in {"NaTType", "NAType"}:
        return None
    if name == "Timestamp" and hasattr(value, "to_pydatetime"):
        return value.to_pydatetime(warn=False)
    return value


def _adapt(value: Any) -> Any:
    python = to_python(value)
    if type(python) is type(value) or isinstance(python, complex):
        raise TypeError(
            f"A {type(value).__name__} cannot be the parameter of a statement. Convert it, for "
            "example by float(x), int(x) or str(x)."
        )
    return adapt(python)
