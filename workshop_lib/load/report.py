"""What came of a load test: each planned row or message is accounted for once; and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import psutil

from workshop_lib.costs import HOURS_A_MONTH, Cost, Prices, run_cost, transaction_dpu
from workshop_lib.load.drivers import Driver
from workshop_lib.load.scenario import InsertLoad, MixedScenario
from workshop_lib.load.worker import Done
from workshop_lib.measure import percentile
from workshop_lib.results import write_json

FIRST_ERRORS = 10
# A worker that computes for this share of its time hardly waits for the database.
BUSY_WORKER = 0.8
# Workers that use this share of all processors leave too little to a database beside them.
BUSY_MACHINE = 0.5
RANKS = {"median": 50, "p95": 95, "p99": 99}
COUNTS = ("planned", "succeeded", "failed", "dropped", "unknown")
AS_IT_IS = ("run", "driver", "seconds", "throughput", "reconciles", "retries",
            "cpu_share", "limited_by", "interrupted", "redelivered", "in_table",
            "errors")  # fmt: skip
# Memory of the stack's load function: the template's FunctionMemory.
FUNCTION_MB = 512
# A row of `business_events`, on average: its id has 50, its JSON 100 to 150.
EVENT_BYTES = 260
# BIGINT, INTEGER, DATE, INTEGER, and NUMERIC of up to three digits before the point.
TRANSACTION_BYTES = 28
# The User Guide's example of a scan, for statements that were not timed here.
SCAN_SECONDS = 0.016
# Messages of a request to SQS, and of one that Lambda hands to the stack's function.
BATCH = 10


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What came of a load, counted in `unit`: planned = succeeded + failed + dropped.

    Attributes:
        run: its name, from which the ids of its rows follow.
        load: what was asked for.
        driver: who did it.
        here: whether processes on this machine did, whose processors they take.
        planned: asked for.
        succeeded: done.
        failed: tried without success; messages that failed are in the dead-letter queue.
        dropped: not begun in time, or given up by an Interrupt.
        unknown: of those that failed or were dropped, how many may be done all the same: no worker
            said so, and no table could tell.
        rows: rows that the successful INSERTs have in the table.
        rows_open: rows that the table may have besides: of INSERTs that were not answered.
        in_table: rows of this run that the database counts after it, without a warm-up's; None if
            they could not be counted.
        seconds: from the first hand-over to the last answer.
        calls: a row for each answered statement: `action` and `seconds`.
        jobs: a row for each job or message: the numbers of `Done`.
        errors: the first few, in words.
        interrupted: Ctrl-C or Interrupt ended it early.
        redelivered: of a mixed load: deliveries beyond the first of a message; None if a function
            processed the queue by itself.
        depth: of a mixed load: how many messages were `waiting` and `processed`, and when (`at`).

    """

    run: str
    load: InsertLoad | MixedScenario
    driver: str
    here: bool
    planned: int
    succeeded: int
    failed: int
    dropped: int
    unknown: int
    rows: int
    rows_open: int
    in_table: int | None
    seconds: float
    calls: pd.DataFrame
    jobs: pd.DataFrame
    errors: tuple[str, ...] = ()
    interrupted: bool = False
    redelivered: int | None = None
    depth: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def unit(self) -> str:
        """What is counted: "rows" of an insert load, "messages" of a mixed load."""
        return "rows" if isinstance(self.load, InsertLoad) else "messages"

    @property
    def reconciles(self) -> bool:
        """Whether everything planned is accounted for once, and the table has the rows reported.

        It may have more, of INSERTs that were not answered.
        """
        if self.in_table is None or self.planned != self.succeeded + self.failed + self.dropped:
            return False
        return 0 <= self.in_table - self.rows <= self.rows_open

    @property
    def throughput(self) -> float:
        """What succeeded, per second."""
        return self.succeeded / self.seconds if self.seconds else 0.0

    @property
    def successful(self) -> int:
        """Jobs whose worker reported complete success."""
        return int((self.jobs.stored == self.jobs.planned).sum())

    @property
    def retries(self) -> int:
        """Statements that were sent again, after a conflict or a lost connection."""
        return int(self.jobs.retries.sum())

    @property
    def cpu_share(self) -> float:
        """Share of their time for which workers computed: near 1, they never waited."""
        return float(self.jobs.cpu_ms.sum() / (self.jobs.duration_ms.sum() or math.inf))

    @property
    def limited_by(self) -> str:
        """Whether a load test measured the database or itself.

        "generator" if the workers computed nearly all the time, or took half of this machine
        (executions of a function have a machine each): then the figures are the load test's own
        limit; else "database".
        """
        available_ms = 1e3 * self.seconds * (psutil.cpu_count() or 1) if self.here else math.inf
        machine = self.jobs.cpu_ms.sum() > BUSY_MACHINE * available_ms
        busy = machine or self.cpu_share > BUSY_WORKER
        return "generator" if busy else "database"

    def by_action(self) -> pd.DataFrame:
        """Answered statements of each action: how many, and how long they took, milliseconds."""
        found = {}
        for action, calls in self.calls.groupby("action", sort=False):
            found[action] = {"statements": len(calls)} | _spread(calls.seconds * 1e3)
        return pd.DataFrame(found).T

    def describe(self) -> dict[str, Any]:
        """The figures as a results file keeps them; durations in milliseconds."""
        answered = self.jobs[self.jobs.state == "answered"]
        begun = self.jobs[self.jobs.state != "not begun"]
        total, successful = len(self.jobs), self.successful
        workers = {"total": total, "successful": successful, "failed": total - successful}
        return {
            **{name: getattr(self, name) for name in AS_IT_IS},
            "load": msgspec.to_builtins(self.load),
            self.unit: {name: getattr(self, name) for name in COUNTS},
            "workers": workers,
            "success_rate": successful / total,
            "total_inserts": self.rows,
            "total_errors": self.failed,
            "statement_ms": _spread(self.calls.seconds * 1e3),
            "latency_ms": _spread(begun.seconds * 1e3),
            "worker_duration_ms": _spread(answered.duration_ms),
            "worker_throughput": _spread(answered.inserts_per_second),
            "by_action_ms": self.by_action().to_dict("index"),
        }

    def __str__(self) -> str:
        parts = {
            f"{self.succeeded:,} of {self.planned:,} {self.unit} in {self.seconds:.2f} s: "
            f"{self.throughput:,.0f}/s by {self.driver}.": True,
            "It was interrupted.": self.interrupted,
            f"{self.failed:,} failed.": self.failed,
            f"{self.dropped:,} were not finished, or not begun in time.": self.dropped,
            f"Of these, {self.unknown:,} may have been done: nothing tells.": self.unknown,
            f"{self.redelivered or 0:,} were delivered again.": self.redelivered,
            "The rows in the table could not be counted.": self.in_table is None,
            f"The first error: {''.join(self.errors[:1])}": self.errors,
            f"The workers computed for {self.cpu_share:.0%} of their time: the load generator was "
            "the limit, not the database.": self.limited_by == "generator",
        }
        return " ".join(said for said, applies in parts.items() if applies)


def make_report(
    driver: Driver | None,
    load: InsertLoad | MixedScenario,
    done: Sequence[Done],
    in_table: int | None,
    said: Iterable[str] = (),
    *,
    each: int = 1,
    **more: Any,
) -> LoadReport:
    """A report that accounts for each row or message once.

    Args:
        driver: who did it; None for a function that the queue is mapped to.
        load: what was asked for.
        done: the record of each job.
        in_table: how many rows there are; None if they could not be counted.
        said: errors of the run itself.
        each: rows or statements of one that is counted: 1 of a row, more of a message.
        more: other attributes.

    """
    jobs = pd.DataFrame(msgspec.to_builtins(done)).assign(stored=[one.stored for one in done])
    planned, reported = jobs.planned.sum(), jobs.stored.sum()
    failed = jobs.error_count.sum() + jobs.planned[jobs.state == "lost"].sum()
    cut = jobs.planned[jobs.state == "interrupted"].sum()
    unanswered = failed + cut
    counts_rows = isinstance(load, InsertLoad) and in_table is not None
    # Of INSERTs that were not answered, some had been stored: the table has the last word.
    stored = min(max((in_table or 0) - reported, 0), unanswered) if counts_rows else 0
    failed -= max(0, stored - cut)
    calls = [(action, us / 1e6) for one in done for action, us in one.calls]
    errors = [error for one in done if one.state != "interrupted" for error in one.errors]
    unknown = 0 if counts_rows else jobs.planned[jobs.state.isin(["lost", "interrupted"])].sum()
    return LoadReport(
        load=load,
        driver=driver.label if driver else "the function that the queue is mapped to",
        here=driver.here if driver else False,
        planned=int(planned // each),
        succeeded=int((reported + stored) // each),
        failed=int(failed // each),
        dropped=int((planned - reported - stored - failed) // each),
        unknown=int(unknown // each),
        rows=int(more.pop("rows", reported) + stored),
        rows_open=int(unanswered - stored),
        in_table=in_table,
        calls=pd.DataFrame(calls, columns=["action", "seconds"]),
        jobs=jobs.drop(columns=["calls", "errors"]),
        errors=tuple([*said, *errors][:FIRST_ERRORS]),
        **more,
    )


def compare_loads(reports: Mapping[str, LoadReport]) -> pd.DataFrame:
    """Insert loads side by side: a column each; rows per second, and durations in milliseconds."""
    first, columns = next(iter(reports.values())).throughput, {}
    for name, r in reports.items():
        times = _spread(r.calls.seconds * 1e3)
        columns[name] = {
            "rows": f"{r.succeeded:,}",
            "rows/s": f"{r.throughput:,.0f}",
            "× the first": f"{r.throughput / first:.1f}" if first else "",
            **{
                f"statement, {q} (ms)": f"{times[q]:.2f}" for q in ("avg", "median", "p95") if times
            },
            "sent again": f"{r.retries}",
            "limited by": r.limited_by,
        }
    return pd.DataFrame(columns)


def save_reports(
    reports: Mapping[str, LoadReport], folder: Path, costs: Mapping[str, Cost] | None = None
) -> Path:
    """Write reports to `results_YYYYMMDD_HHMMSS.json` in a folder, and say where.

    Args:
        reports, costs: by the names of the scenarios.
        folder: where.

    Raises:
        ResultError: it cannot be written.

    """
    found = {name: report.describe() for name, report in reports.items()}
    for name, cost in (costs or {}).items():
        found[name]["cost_usd"] = cost.total
    stamp = time.localtime()
    name = time.strftime("results_%Y%m%d_%H%M%S", stamp)
    if others := len(list(folder.glob(f"{name}*"))):  # of this second
        name = f"{name}_{others + 1}"
    path = folder / f"{name}.json"
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z", stamp)
    write_json(path, {"timestamp": written, "scenarios": found})
    return path


def load_cost(
    report: LoadReport,
    prices: Prices,
    *,
    function_mb: float | None = FUNCTION_MB,
    table_rows: int = 0,
    kept: bool = False,
) -> Cost:
    """What a load cost, or would cost on AWS, by list prices and the published DPU formula.

    Args:
        report: of the load.
        prices: of the Region.
        function_mb: memory of the function that did it; None if processes outside AWS did.
        table_rows: rows of the table that each SELECT of a mixed load reads whole.
        kept: the rows stay, for a month.

    """
    load, begun = report.load, report.jobs[report.jobs.state != "not begun"]
    more: dict[str, Any] = {}
    if isinstance(load, InsertLoad):
        rows_each, row_bytes = load.rows, EVENT_BYTES
        # A statement that was sent again is charged again.
        sent = math.ceil((report.succeeded + report.failed) / load.rows)
        statements = sent + load.warm_up + report.retries
        invocations, busy_s = load.warm_up + len(begun), begun.duration_ms.sum() / 1e3
        # What comes in from outside AWS is free, and answers are short.
        more["moved_bytes"] = statements * rows_each * row_bytes if function_mb else 0.0
    else:
        rows_each, row_bytes, statements = 1, TRANSACTION_BYTES, report.rows
        reads = report.succeeded * load.statements_per_message - report.rows
        scans = report.calls.seconds[report.calls.action != "INSERT"]
        scan_s = scans.mean() if len(scans) else SCAN_SECONDS
        read = transaction_dpu(bytes_read=table_rows * row_bytes, compute_seconds=scan_s)
        invocations, busy_s = math.ceil(len(begun) / BATCH), scan_s * (reads + statements)
        # Each batch of messages is sent, received and deleted.
        more |= {"reading_dpu": reads * read, "requests": 3 * invocations}
    return run_cost(
        prices,
        statements=statements,
        rows_each=rows_each,
        row_bytes=row_bytes,
        invocations=invocations if function_mb else 0,
        function_seconds=float(busy_s),
        function_mb=function_mb or 0.0,
        outside=not function_mb,
        stored_seconds=HOURS_A_MONTH * 3_600 if kept else report.seconds,
        kept=kept,
        **more,
    )


def format_cost(cost: Cost, prices: Prices, *, function_mb: float | None, on_aws: bool) -> str:
    """The cost of a load in a sentence or two; `on_aws`: it was spent, else it would be."""
    begin = "It cost about" if on_aws else "The same work on AWS would cost about"
    items = {" ".join(item): usd for item, usd in cost.items.items() if usd >= 5e-7}
    told = ", ".join(f"{item} {_usd(usd)}" for item, usd in items.items())
    function = f" with {function_mb:,.0f} MB" if function_mb else ""
    return (
        f"{begin} {_usd(cost.total)} USD{function}: {told}. (List prices of {prices.as_of} in "
        f"{prices.region}, or older where data/prices.toml says so, without free tiers; DPU by the "
        "User Guide's formula.)"
    )


def _usd(usd: float) -> str:
    """Two significant digits, no exponent."""
    return f"{usd:,.2f}" if usd >= 1 else f"{float(f'{usd:.2g}'):.12f}".rstrip("0").rstrip(".")


def _spread(values: Iterable[float]) -> dict[str, float]:
    """How figures are spread, by nearest rank, in their unit; empty if there are none."""
    found = sorted(values)
    if not found:
        return {}
    ranks = {name: percentile(found, q) for name, q in RANKS.items()}
    return {"min": found[0], "max": found[-1], "avg": sum(found) / len(found), **ranks}
