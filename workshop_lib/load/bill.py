"""What a load test costs on AWS, by list prices: from what its report says was done."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any

from workshop_lib.costs import HOURS_A_MONTH, Cost, Prices, run_cost, transaction_dpu
from workshop_lib.load.events import EventType, events
from workshop_lib.load.inserts import InsertReport
from workshop_lib.load.mixed import MixedReport
from workshop_lib.load.scenario import InsertLoad
from workshop_lib.services.functions import MEMORY_MB

FUNCTION_MB = MEMORY_MB
MONTH_S = HOURS_A_MONTH * 3_600
SAMPLE = 200
BATCH = 10
"""Messages that Lambda hands to a function at a time, by the stack's mapping."""
TIMES_BYTES = 16
TRANSACTION_BYTES = 28
"""BIGINT, INTEGER, DATE, INTEGER, and NUMERIC of up to three digits before the point."""
SCAN_SECONDS = 0.016
"""The User Guide's example of a scan; for statements that others timed."""
NAMES = {
    "database": "Aurora DSQL",
    "queue": "SQS",
    "functions": "Lambda",
    "transfer": "data transfer",
}


def planned_cost(
    load: InsertLoad, prices: Prices, statement_s: float, *, function_mb: float = FUNCTION_MB
) -> Cost:
    """What a load would cost if Lambda functions did it, and its rows were deleted afterwards.

    Args:
        load: what to do.
        prices: by what it is charged.
        statement_s: how long one INSERT takes, seconds.
        function_mb: the function's memory.

    """
    each = load.iterations * load.statements
    statements = load.workers * each + load.warm_up
    return _cost_of_inserts(
        load,
        prices,
        statements,
        invocations=load.workers + load.warm_up,
        function_seconds=statements * statement_s,
        function_mb=function_mb,
        stored_seconds=each * statement_s,
    )


def insert_cost(
    report: InsertReport,
    prices: Prices,
    *,
    function_mb: float | None = FUNCTION_MB,
    kept: bool = False,
) -> Cost:
    """What an insert load cost, or would cost on AWS.

    Args:
        report: of the load.
        prices: by what it is charged.
        function_mb: the memory of the function that did it; None if processes outside AWS did.
        kept: the rows stay, for a month.

    """
    load = report.load
    # A statement that was sent again is charged again.
    sent = math.ceil((report.succeeded + report.failed) / load.rows)
    return _cost_of_inserts(
        load,
        prices,
        sent + report.conflicts + report.reconnects + load.warm_up,
        invocations=len(report.invocations) + load.warm_up if function_mb else 0,
        function_seconds=sum(report.worker_durations_s),
        function_mb=function_mb or 0.0,
        outside=not function_mb,
        stored_seconds=MONTH_S if kept else report.seconds,
        kept=kept,
    )


def _cost_of_inserts(load: InsertLoad, prices: Prices, statements: int, **how: Any) -> Cost:
    """What so many statements of a load cost; what goes in is free outside, answers are short."""
    row_bytes = event_bytes(load.event_type)
    moved = 0.0 if how.get("outside") else statements * load.rows * row_bytes
    return run_cost(
        prices,
        statements=statements,
        rows_each=load.rows,
        row_bytes=row_bytes,
        moved_bytes=moved,
        **how,
    )


def mixed_cost(
    report: MixedReport,
    prices: Prices,
    table_rows: int,
    *,
    function_mb: float | None = FUNCTION_MB,
    kept: bool = False,
) -> Cost:
    """What a mixed load cost, or would cost on AWS.

    Args:
        report: of the load.
        prices: by what it is charged.
        table_rows: rows of the table that each SELECT reads whole.
        function_mb: the memory of the function that did it; None if processes outside AWS did.
        kept: the rows stay, for a month.

    """
    reads = report.statements - report.rows_reported
    timed = [s for action in ("SELECT", "SELECT2") for s in report.durations[action].seconds]
    mean_s = sum(timed) / len(timed) if timed else SCAN_SECONDS
    table_bytes = table_rows * TRANSACTION_BYTES
    # SELECT2 finds one row in twenty, on average; SELECT gives ten sums.
    answers = reads / 2 * table_bytes / 20
    batches = len(report.executions) or math.ceil((report.planned - report.unsent) / BATCH)
    busy_s = sum(lasted for _, lasted, _ in report.executions) or mean_s * report.statements
    return run_cost(
        prices,
        statements=report.rows_reported,
        rows_each=1,
        row_bytes=TRANSACTION_BYTES,
        reading_dpu=reads * transaction_dpu(bytes_read=table_bytes, compute_seconds=mean_s),
        invocations=batches if function_mb else 0,
        function_seconds=busy_s,
        function_mb=function_mb or 0.0,
        # Lambda's own pollers receive and delete.
        requests=report.requests + (2 * batches if report.by_others else 0),
        moved_bytes=answers,
        outside=not function_mb,
        stored_seconds=MONTH_S if kept else report.seconds,
        kept=kept,
    )


def event_bytes(kind: EventType) -> float:
    """The mean size of a row of `business_events`, bytes."""
    ids = (f"20260101T000000-abcdef/00000/0000000/{number:04d}" for number in range(SAMPLE))
    rows = islice(events(kind, ids, "size", datetime.now(UTC)), SAMPLE)
    texts = (row[0] + row[1] + row[2] + row[5] for row in rows)
    return TIMES_BYTES + sum(len(text.encode()) for text in texts) / SAMPLE


def format_cost(
    cost: Cost,
    prices: Prices,
    today: date,
    *,
    function_mb: float | None,
    on_aws: bool,
    region: str | None = None,
) -> str:
    """The cost of a run as a line or two.

    Args:
        cost, prices: the bill, and by what it was made.
        today: old prices are warned about.
        function_mb: the memory that was charged; None if no function ran.
        on_aws: whether it was spent; else the same work on AWS would cost it.
        region: where it was spent.

    """
    begin = "It cost about" if on_aws else "The same work on AWS would cost about"
    storage = cost.items.get(("database", "storage"), 0.0)
    parts = {name: cost.by_service[service] for service, name in NAMES.items()}
    parts["Aurora DSQL"] -= storage
    parts["its storage"] = storage
    if function_mb:
        parts[f"Lambda ({function_mb:,.0f} MB)"] = parts.pop("Lambda")
    told = ", ".join(f"{name} {_usd(usd)}" for name, usd in parts.items() if usd)
    made_by = f"List prices of {prices.as_of} in {prices.region}, without free tiers"
    said = f"{begin} {_usd(cost.total)} USD: {told}. ({made_by}; DPU by the User Guide's formula.)"
    if on_aws and region and region != prices.region:
        said += f"\nIt ran in {region}, where prices may differ: change data/prices.toml."
    warning = prices.warning(today)
    return f"{said}\n{warning}" if warning else said


def _usd(usd: float) -> str:
    """Two significant digits, no exponent."""
    if usd < 0.000001:
        return "under 0.000001"
    return f"{usd:,.2f}" if usd >= 1 else f"{float(f'{usd:.2g}'):.12f}".rstrip("0").rstrip(".")
