"""Statistics of statements from a file: a CSV of pg_stat_statements, or plans of Aurora DSQL."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pgparse

from workshop_lib.advise.sql_shape import parse_one
from workshop_lib.errors import DataError

MAX_NUMBER = 1e12
EXECUTION = ["total_exec_time", "total_time", "mean_exec_time", "mean_time", "mean_ms"]
"""Milliseconds: pg_stat_statements since version 13, before it, and ours; of all calls, or one."""
PLANNING = ["total_plan_time", "mean_plan_time"]
DPU = ["total_dpu", "dpu"]
HIDDEN = "<insufficient privilege>"
"""What pg_stat_statements shows in place of another user's statement."""
PLAN = re.compile(r"^ *QUERY PLAN *$", re.MULTILINE)
EXPLAIN = re.compile(
    r"^\s*EXPLAIN(?:\s*\([^)]*\)|(?:\s+(?:ANALYZE|VERBOSE))+)", re.IGNORECASE | re.MULTILINE
)
ESTIMATE = re.compile(
    r"^(?! *Total) *[\w -]+: ([\d.]+) DPU(?: \(Transaction minimum: ([\d.]+)\))?", re.MULTILINE
)
"""A line at the end of a plan (Aurora DSQL User Guide, "Understanding DPUs in EXPLAIN ANALYZE")."""
TOOK = re.compile(r"^ *(?:Planning|Execution) Time: ([\d.]+) ms", re.MULTILINE)
RETURNED = re.compile(r"\(actual .*?rows=([\d.]+)")


@dataclass(frozen=True, slots=True)
class Statistic:
    """What is known of one statement.

    Attributes:
        query: its text.
        mean_ms: of the database's work for one call, milliseconds.
        rows: of one answer.
        dpu: of one call, if known.
        calls: how often it was called; None if that is not known, as of a plan.
        days: in which it was called so often, if known.

    """

    query: str
    mean_ms: float
    rows: float = 1.0
    dpu: float | None = None
    calls: float | None = None
    days: float | None = None


def parse(text: str) -> tuple[list[Statistic], int]:
    """The statements of a file, and how many more there are whose text it hides.

    Args:
        text: CSV with a line of names, or plans of Aurora DSQL as `psql -e` writes them.

    Raises:
        DataError: it is neither, or something in it cannot be read; the error says what.

    """
    if PLAN.search(text):
        return list(_plans(text)), 0
    table = _read_table(text)
    shown = table["query"].notna() & (table["query"] != HIDDEN)
    if not shown.any():
        raise DataError(
            "No statement in it can be read. If their texts are hidden, sign in as a member of "
            "pg_read_all_stats."
        )
    return list(_sums(table[shown])), int((~shown).sum())


def _read_table(text: str) -> pd.DataFrame:
    """The rows of statements that were called, their numbers as numbers."""
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"It is no CSV: {' '.join(str(error).split())}.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the values before for names
        raise DataError("It has rows with more values than its first line has names.")
    table.columns = table.columns.str.strip().str.lower()
    missing = [name for name in ("query", "calls") if name not in table]
    missing += ["mean_exec_time"] if table.columns.intersection(EXECUTION).empty else []
    if missing:
        raise DataError(
            f"Its first line names no column {' and no '.join(missing)}. `workshop advise` without "
            "a file says how to make one."
        )
    for name in table.columns.intersection(["calls", "rows", "days", *EXECUTION, *PLANNING, *DPU]):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name].notna() & ~numbers.between(0, MAX_NUMBER)
        if wrong.any():
            raise DataError(
                f"One of its rows has {name} = {table[name][wrong].iloc[0][:40]!r}; it must be a "
                "number from 0 to 1e12, such as 12.5."
            )
        table[name] = numbers
    if "toplevel" in table:  # what a function runs is counted again in its caller
        table = table[~table["toplevel"].str.lower().str.startswith("f", na=False)]
    return table[table["calls"] > 0]


def _sums(table: pd.DataFrame) -> Iterator[Statistic]:
    """Each statement once: in the file it has a row for each user and database."""

    def total(names: list[str]) -> Any:
        """Of all calls of each row, by the first of these columns that is there."""
        name = next((one for one in names if one in table), None)
        if name is None:
            return pd.Series(math.nan, table.index)
        return table[name] * (1 if name.startswith("total") else table["calls"])

    totals = table.assign(
        query=table["query"].str.strip(),
        mean_ms=total(EXECUTION) + total(PLANNING).fillna(0),
        dpu=total(DPU),
        **{name: table.get(name, math.nan) for name in ("rows", "days")},
    )
    if totals["mean_ms"].isna().any():
        raise DataError("One of its rows has no time.")
    by_text = totals.groupby(["query", "days"], dropna=False, sort=False)
    sums = by_text[["mean_ms", "rows", "dpu", "calls"]].sum(
        skipna=False
    )  # unknown in one row: unknown
    means = sums.div(sums["calls"], axis="index").assign(calls=sums["calls"])
    for one in means.reset_index().to_dict("records"):
        yield Statistic(**{str(name): x for name, x in one.items() if not pd.isna(x)})


def _plans(text: str) -> Iterator[Statistic]:
    """Each plan, with the EXPLAIN that stands before it."""
    before, *plans = PLAN.split(text)
    for plan in plans:
        _, *explained = EXPLAIN.split(before)
        if not explained:
            raise DataError("A plan comes without its statement, which `psql -e` writes before it.")
        query = explained[-1].strip().removesuffix(";")
        parts = ESTIMATE.findall(plan)
        if not parts:
            raise DataError(
                f"There is no `Statement DPU Estimate` in the plan of {query[:60]!r}: EXPLAIN "
                "ANALYZE VERBOSE on Aurora DSQL ends with one."
            )
        if parse_one(query):
            query = str(pgparse.normalize(query))  # with parameters in place of its values
        returned = RETURNED.search(plan)
        yield Statistic(
            query,
            mean_ms=sum(map(float, TOOK.findall(plan))),
            rows=float(returned[1]) if returned else 1.0,
            # It is counted as a transaction of its own.
            dpu=sum(max(float(dpu), float(least or 0)) for dpu, least in parts),
        )
        before = plan
