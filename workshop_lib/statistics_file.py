"""Statistics of statements from a file: a CSV of pg_stat_statements, or plans of Aurora DSQL."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import pgparse

from workshop_lib.errors import DataError
from workshop_lib.sql_shape import parse_one

MAX_NUMBER = 1e12
EXECUTION = ("total_exec_time", "total_time", "total_ms", "mean_exec_time", "mean_time", "mean_ms")
"""Milliseconds: pg_stat_statements since version 13, before it, and ours; of all calls, or one."""
PLANNING = ("total_plan_time", "mean_plan_time")
DPU = ("total_dpu", "dpu")
HIDDEN = "<insufficient privilege>"
"""What pg_stat_statements shows in place of another user's statement."""
PLAN = "QUERY PLAN"
ESTIMATE = re.compile(
    r"\s*(?P<part>[\w -]+): (?P<dpu>[\d.]+) DPU(?: \(Transaction minimum: (?P<least>[\d.]+)\))?\s*"
)
"""A line at the end of a plan (Aurora DSQL User Guide, "Understanding DPUs in EXPLAIN ANALYZE")."""
TOOK = re.compile(r"\s*(?:Planning|Execution) Time: (?P<ms>[\d.]+) ms\s*")
RETURNED = re.compile(r".*\(actual .*?rows=(?P<rows>[\d.]+).*")
MAX_PREFIX = 8
"""How many words EXPLAIN and its options may be."""


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
        DataError: it is neither, or a line cannot be read; the error names it.

    """
    if "\0" in text:
        raise DataError("It holds bytes of 0, so it is no text. Save it as CSV, in UTF-8.")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    names = [name.strip(' "\r').lower() for name in header.split(delimiter)]
    if PLAN in text and not {"query", "calls"} <= set(names):
        return list(_plans(text)), 0
    found: dict[tuple[str, float | None], Statistic] = {}
    hidden = 0
    for one in _table(text, delimiter, names):
        # A statement has a row for each user and database.
        before = found.get((one.query, one.days))
        found[one.query, one.days] = _sum(before, one) if before else one
        hidden += one.query == HIDDEN
    seen = [one for one in found.values() if one.query != HIDDEN]
    if not seen:
        raise DataError(
            "No statement in it can be read. If their texts are hidden, sign in as a member of "
            "pg_read_all_stats."
        )
    return seen, hidden


def _sum(first: Statistic, second: Statistic) -> Statistic:
    calls = (first.calls or 0.0) + (second.calls or 0.0)
    share = (first.calls or 0.0) / calls
    dpu = [one.dpu for one in (first, second) if one.dpu is not None]
    return replace(
        first,
        mean_ms=share * first.mean_ms + (1 - share) * second.mean_ms,
        rows=share * first.rows + (1 - share) * second.rows,
        dpu=share * dpu[0] + (1 - share) * dpu[-1] if dpu else None,
        calls=calls,
    )


def _table(text: str, delimiter: str, names: list[str]) -> Iterator[Statistic]:
    missing = [name for name in ("query", "calls") if name not in names]
    missing += ["mean_exec_time"] if set(names).isdisjoint(EXECUTION) else []
    if missing:
        raise DataError(
            f"Its first line names no column {' and no '.join(missing)}. `workshop advise` without "
            "a file prints the statement that makes such a file."
        )
    csv.field_size_limit(sys.maxsize)  # a statement may be longer than csv's usual 131,072
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(lines)
        for values in filter(None, lines):
            where = f"The row that ends in line {lines.line_num}"
            if len(values) != len(names):
                raise DataError(f"{where} has {len(values)} values for {len(names)} columns.")
            row = dict(zip(names, values, strict=True))
            # What a function runs is counted again in the statement that calls the function.
            if not row.get("toplevel", "").lower().startswith("f"):
                yield from _row(row, where)
    except csv.Error as error:
        raise DataError(f"Line {lines.line_num} is not CSV: {error}.") from None


def _row(row: Mapping[str, str], where: str) -> Iterator[Statistic]:
    """The statistic of a row, if it was called."""
    calls = _number(row, "calls", where)
    if calls is None:
        raise DataError(f"{where} has no calls.")
    if not calls:
        return

    def mean(names: Iterable[str]) -> float | None:
        known = ((name, _number(row, name, where)) for name in names)
        found = ((name, value) for name, value in known if value is not None)
        return next((v / calls if name.startswith("total") else v for name, v in found), None)

    ms = mean(EXECUTION)
    if ms is None:
        raise DataError(f"{where} has no time.")
    ms += mean(PLANNING) or 0.0
    rows = (_number(row, "rows", where) or 0.0) / calls
    days = _number(row, "days", where)
    yield Statistic(row["query"].strip(), ms, rows, mean(DPU), calls, days)


def _number(row: Mapping[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "").strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= MAX_NUMBER:
        raise DataError(
            f"{where} has {name} = {text[:40]!r}; it must be a number from 0 to 1e12, such as 12.5."
        )
    return value


def _plans(text: str) -> Iterator[Statistic]:
    """Each plan, with the EXPLAIN that stands before it."""
    before: list[str] = []
    plan: dict[str, float] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() == PLAN:
            starts = [
                i for i, one in enumerate(before) if one.strip().upper().startswith("EXPLAIN")
            ]
            if plan is not None:
                break
            if not starts:
                raise DataError(
                    f"The plan in line {number} comes without its statement, which `psql -e` "
                    "writes before it."
                )
            query, plan = _explained("\n".join(before[starts[-1] :])), defaultdict(float)
        elif plan is None:
            before.append(line)
        elif found := TOOK.fullmatch(line):
            plan["ms"] += float(found["ms"])
        elif found := ESTIMATE.fullmatch(line):
            if found["part"].strip() == "Total":
                yield Statistic(query, plan["ms"], plan.get("rows", 1.0), plan["dpu"])
                before, plan = [], None
            else:  # it is counted as a transaction of its own
                plan["dpu"] += max(float(found["dpu"]), float(found["least"] or 0))
        elif "rows" not in plan and (found := RETURNED.fullmatch(line)):
            plan["rows"] = float(found["rows"])
    if plan is not None:
        raise DataError(
            f"There is no `Statement DPU Estimate` in the plan of {query[:60]!r}: EXPLAIN ANALYZE "
            "VERBOSE on Aurora DSQL ends with one."
        )


def _explained(text: str) -> str:
    """The statement after EXPLAIN and its options, with parameters in place of its values."""
    rest = text
    for _ in range(MAX_PREFIX):
        rest = "".join(rest.split(maxsplit=1)[1:])
        if parse_one(rest):
            return str(pgparse.normalize(rest)).strip().removesuffix(";")
    return text
