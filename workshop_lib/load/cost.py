"""What a load test costs on AWS, by list prices: from what its report says was done."""

from __future__ import annotations

import math
from datetime import date

from workshop_lib.costs import HOURS_A_MONTH, Cost, Prices, run_cost, transaction_dpu
from workshop_lib.load.report import LoadReport
from workshop_lib.load.scenario import InsertLoad, MixedScenario

FUNCTION_MB = 512
"""Of the stack's load function, where it does not say itself: the template's FunctionMemory."""
EVENT_BYTES = 260
"""A row of `business_events`, on average: its id has 50, its JSON 100 to 150."""
TRANSACTION_BYTES = 28
"""BIGINT, INTEGER, DATE, INTEGER, and NUMERIC of up to three digits before the point."""
SCAN_SECONDS = 0.016
"""The User Guide's example of a scan; for statements that others timed."""
BATCH = 10
"""Messages that Lambda hands to a function at a time, by the stack's mapping."""


def load_cost(
    report: LoadReport,
    prices: Prices,
    *,
    function_mb: float | None = FUNCTION_MB,
    table_rows: int = 0,
    kept: bool = False,
) -> Cost:
    """What an insert load or a mixed load cost, or would cost on AWS.

    Args:
        report: of the load.
        prices: by what it is charged.
        function_mb: the memory of the function that did it; None if processes outside AWS did.
        table_rows: rows of the table that each SELECT of a mixed load reads whole.
        kept: the rows stay, for a month.

    """
    load, reads, requests = report.load, 0, 0
    table_bytes = table_rows * TRANSACTION_BYTES
    if isinstance(load, MixedScenario):
        statements, rows_each, row_bytes = report.rows, 1, TRANSACTION_BYTES
        reads = report.succeeded * load.statements_per_message - report.rows
        scans = report.calls.seconds[report.calls.action != "INSERT"]
        scan_s = scans.mean() if len(scans) else SCAN_SECONDS
        batches = len(report.executions) or math.ceil(
            (report.jobs.state != "not begun").sum() / BATCH
        )
        busy_s = report.executions.seconds.sum() or scan_s * (reads + statements)
        # Lambda's own pollers receive and delete. SELECT2 finds one row in twenty, on average.
        requests = report.requests + (2 * batches if report.by_others else 0)
        moved_bytes = reads / 2 * table_bytes / 20
        reading = reads * transaction_dpu(bytes_read=table_bytes, compute_seconds=scan_s)
    else:
        assert isinstance(load, InsertLoad)  # noqa: S101 -- there is no third kind
        rows_each, row_bytes, reading = load.rows, EVENT_BYTES, 0.0
        # A statement that was sent again is charged again.
        statements = math.ceil((report.succeeded + report.failed) / load.rows) + load.warm_up
        statements += report.conflicts + report.reconnects
        batches = load.warm_up + int((report.jobs.state != "not begun").sum())
        busy_s = report.jobs.duration_ms.sum() / 1e3
        # What goes in from outside is free, and answers are short.
        moved_bytes = statements * rows_each * row_bytes if function_mb else 0.0
    return run_cost(
        prices,
        statements=statements,
        rows_each=rows_each,
        row_bytes=row_bytes,
        reading_dpu=reading,
        invocations=batches if function_mb else 0,
        function_seconds=float(busy_s),
        function_mb=function_mb or 0.0,
        requests=requests,
        moved_bytes=moved_bytes,
        outside=not function_mb,
        stored_seconds=HOURS_A_MONTH * 3_600 if kept else report.seconds,
        kept=kept,
    )


def format_cost(
    cost: Cost, prices: Prices, today: date, *, function_mb: float | None, on_aws: bool
) -> str:
    """The cost of a run as a line or two.

    Args:
        cost, prices: the bill, and by what it was made.
        today: old prices are warned about.
        function_mb: the memory that was charged; None if no function ran.
        on_aws: whether it was spent; else the same work on AWS would cost it.

    """
    begin = "It cost about" if on_aws else "The same work on AWS would cost about"
    told = ", ".join(
        f"{' '.join(item)} {_usd(usd)}" for item, usd in cost.items.items() if usd >= 5e-7
    )
    function = f" with {function_mb:,.0f} MB" if function_mb else ""
    said = (
        f"{begin} {_usd(cost.total)} USD{function}: {told}. (List prices of {prices.as_of} in "
        f"{prices.region}, without free tiers; DPU by the User Guide's formula.)"
    )
    return "\n".join(filter(None, [said, prices.warning(today)]))


def _usd(usd: float) -> str:
    """Two significant digits, no exponent."""
    return f"{usd:,.2f}" if usd >= 1 else f"{float(f'{usd:.2g}'):.12f}".rstrip("0").rstrip(".")
