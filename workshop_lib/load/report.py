"""What came of a load test: every planned row or message is accounted for once."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import pandas as pd
import psutil
import psycopg2

from workshop_lib.costs import Cost
from workshop_lib.database import Database
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.drivers import Driver
from workshop_lib.load.jobs import Done
from workshop_lib.load.rows import rows_of
from workshop_lib.load.scenario import InsertLoad, MixedScenario
from workshop_lib.measure import Samples, percentile
from workshop_lib.results import write_json

FIRST_ERRORS = 10
LOST = ("lost", "interrupted")
SETTLED_S = 0.3
"""A statement of a worker that was ended may be committed shortly after: this long it is waited."""
BUSY_WORKER = 0.8
"""A worker that computes for this share of its time waits for the database hardly at all."""
BUSY_MACHINE = 0.5
"""Workers that use this share of all processors leave too little to a database beside them."""
COUNTS = ("planned", "succeeded", "failed", "dropped", "unknown")
AS_IT_IS = ("run", "driver", "seconds", "throughput", "success_rate", "reconciles",
            "conflicts", "reconnects", "cpu_seconds", "cpu_share", "limited_by", "interrupted",
            "redelivered", "in_table", "errors")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What came of a load: `planned` is the sum of the next three, counted in `unit`.

    Attributes:
        run: its name or number: the ids of its rows begin with it, or follow from it.
        load: what was asked for.
        unit: "rows" of an insert load, "messages" of a mixed load.
        driver: who did it.
        here: whether they are processes on this machine, whose processors they take.
        planned: asked for.
        succeeded: done.
        failed: tried in vain: messages that failed are in the dead-letter queue.
        dropped: not begun in time, or given up by an Interrupt.
        unknown: of those that failed or were dropped, how many may be done all the same: no worker
            said so, and no table could tell.
        rows: that the INSERTs which succeeded have in the table.
        rows_open: rows that the table may have besides: of INSERTs of which no answer came.
        in_table: rows of this run that the database counts after it, a warm-up's left out; None if
            they could not be counted.
        seconds: from the first hand-over to the last answer.
        calls: a row for each answered statement, in their order: `at` (when it was sent, from the
            beginning of the job), `seconds` (how long it took) and `action`.
        jobs: a row for each job, or message: the numbers of `Done`.
        errors: the first few, in words.
        interrupted: it was ended early, by Ctrl-C or Interrupt.
        by_others: a function processed the queue by itself; then `redelivered` and `executions` are
            not known.
        redelivered: of a mixed load: deliveries beyond the first of a message.
        executions: of a mixed load: when a worker was given messages (`at`), how long it took
            (`seconds`), how many (`messages`).
        depth: of a mixed load: how many messages were `waiting` and `processed` at what time
            (`at`).
        requests: to the queue: sent, received, deleted, and looked.

    """

    run: str | int
    load: InsertLoad | MixedScenario
    unit: str
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
    by_others: bool = False
    redelivered: int | None = None
    executions: pd.DataFrame = field(default_factory=pd.DataFrame)
    depth: pd.DataFrame = field(default_factory=pd.DataFrame)
    requests: int = 0

    @classmethod
    def of(
        cls,
        driver: Driver | None,
        done: Sequence[Done],
        in_table: int | None,
        said: Iterable[str],
        *,
        unit: str,
        rows_each: int = 1,
        **more: Any,
    ) -> Self:
        """A report that accounts for every job, or message, once.

        Args:
            driver: who did it; None for a function that a queue is mapped to.
            done: what became of each.
            in_table: how many rows there are; None if that cannot be said.
            said: errors of the run itself.
            unit: what is counted.
            rows_each: rows that one of them may have in the table.
            more: other attributes.

        """
        lost = Counter[str]()
        for one in done:
            lost[one.state] += one.planned if one.state in LOST else 0
        reported = sum(one.success_count + one.already_there for one in done)
        rows = sum(one.rows for one in done)
        no_answer = sum(one.error_count for one in done) + lost.total()
        # Of INSERTs whose answer did not come, some had been stored: the table has the last word.
        counted = unit == "rows" and in_table is not None
        stored = max(0, min((in_table or 0) - rows, no_answer)) if counted else 0
        planned, succeeded = sum(one.planned for one in done), reported + stored
        dropped = sum(one.dropped for one in done) + max(0, lost["interrupted"] - stored)
        calls = pd.DataFrame(
            sorted(call for one in done for call in one.calls),
            columns=["at", "seconds", "action"],
        )
        calls[["at", "seconds"]] /= 1e6
        jobs = pd.DataFrame(map(msgspec.to_builtins, done), columns=list(Done.__struct_fields__))
        found = [error for one in done if one.state != "interrupted" for error in one.errors]
        return cls(
            driver=driver.label if driver else "the function that the queue is mapped to",
            here=driver.here if driver else False,
            unit=unit,
            planned=planned,
            succeeded=succeeded,
            failed=planned - succeeded - dropped,
            dropped=dropped,
            unknown=0 if counted else lost.total(),
            rows=rows + stored,
            rows_open=(no_answer - stored) * rows_each,
            in_table=in_table,
            calls=calls,
            jobs=jobs.drop(columns=["calls", "errors"]),
            errors=tuple([*said, *found][:FIRST_ERRORS]),
            **more,
        )

    @property
    def reconciles(self) -> bool:
        """Whether everything planned is accounted for once, and the table has the rows reported.

        It may have more of those of which no answer came.
        """
        if self.in_table is None or self.planned != self.succeeded + self.failed + self.dropped:
            return False
        return 0 <= self.in_table - self.rows <= self.rows_open

    @property
    def throughput(self) -> float:
        """What succeeded, a second."""
        return self.succeeded / self.seconds if self.seconds else 0.0

    @property
    def success_rate(self) -> float:
        """Share of the workers that reported that all went well."""
        return float(self._well.mean()) if len(self.jobs) else 0.0

    @property
    def conflicts(self) -> int:
        """Statements that were sent again because another transaction was faster."""
        return int(self.jobs.conflicts.sum())

    @property
    def reconnects(self) -> int:
        """Statements that were sent again because the database went away."""
        return int(self.jobs.reconnects.sum())

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the workers themselves."""
        return float(self.jobs.cpu_ms.sum()) / 1e3

    @property
    def cpu_share(self) -> float:
        """The same, of the time that they had: near 1, a worker was never waiting."""
        return self.cpu_seconds * 1e3 / (float(self.jobs.duration_ms.sum()) or math.inf)

    @property
    def machine_share(self) -> float:
        """The same, of the time that all processors of this machine had; 0 if it was not here."""
        available = self.seconds * (psutil.cpu_count() or 1)
        return self.cpu_seconds / available if self.here and available else 0.0

    @property
    def limited_by(self) -> str:
        """Whether a load test measured the database or itself.

        "generator" if the workers computed nearly all the time, or took half of this machine
        (executions of a function have a machine each): then the figures are the load test's own
        limit; else "database".
        """
        busy = self.cpu_share > BUSY_WORKER or self.machine_share > BUSY_MACHINE
        return "generator" if busy else "database"

    def times(self, action: str = "") -> Samples:
        """How long the answered statements or requests took; of one action, or all."""
        chosen = self.calls[self.calls.action == action] if action else self.calls
        return Samples(action or "statement", tuple(chosen.seconds))

    def by_action(self) -> pd.DataFrame:
        """How long the statements of each action took: n, and milliseconds."""
        found = {action: self.times(action) for action in self.calls.action.unique()}
        return pd.DataFrame(
            {
                action: {"statements": len(times), "avg": times.mean * 1e3}
                | {f"p{q}": times.percentile(q) * 1e3 for q in (50, 95, 99)}
                for action, times in found.items()
                if len(times)
            }
        ).T

    def describe(self) -> dict[str, Any]:
        """The figures as a results file keeps them; durations in milliseconds."""
        answered = self.jobs[self.jobs.state == "answered"]
        well = int(self._well.sum())
        return {
            **{name: getattr(self, name) for name in AS_IT_IS},
            "load": msgspec.to_builtins(self.load),
            self.unit: {name: getattr(self, name) for name in COUNTS},
            "workers": {"total": len(self.jobs), "successful": well,
                        "failed": len(self.jobs) - well},
            "total_inserts": self.rows,
            "total_errors": self.failed,
            "statement_ms": _spread(s * 1e3 for s in self.times().seconds),
            "latency_ms": _spread(self.jobs.seconds[self.jobs.state != "not begun"] * 1e3),
            "worker_duration_ms": _spread(answered.duration_ms),
            "worker_throughput": _spread(answered.inserts_per_second),
            "by_action_ms": self.by_action().to_dict("index"),
        }  # fmt: skip

    def __str__(self) -> str:
        busy = f"computed for {self.cpu_share:.0%} of their time"
        if self.cpu_share <= BUSY_WORKER:
            busy = f"took {self.machine_share:.0%} of this machine's processors"
        computing = f"The workers {busy}: the load generator was the limit, not the database."
        parts = {
            f"{self.succeeded:,} of {self.planned:,} {self.unit} in {self.seconds:.2f} s: "
            f"{self.throughput:,.0f}/s by {self.driver}.": True,
            "It was interrupted.": self.interrupted,
            f"{self.failed:,} failed.": self.failed,
            f"{self.dropped:,} were not finished, or not begun in time.": self.dropped,
            f"It is not known what became of {self.unknown:,} of these.": self.unknown,
            f"{self.redelivered or 0:,} were delivered again.": self.redelivered,
            "The rows in the table could not be counted.": self.in_table is None,
            f"The first error: {''.join(self.errors[:1])}": self.errors,
            computing: self.limited_by == "generator",
        }
        return " ".join(said for said, applies in parts.items() if applies)

    @property
    def _well(self) -> pd.Series:
        return self.jobs.success_count + self.jobs.already_there == self.jobs.planned


def count_settled(
    database: Database, run: str | int, done: Sequence[Done]
) -> tuple[int | None, list[str]]:
    """The rows of a run, a warm-up's left out; or None, and why they cannot be counted.

    What a worker had sent when it ended may be under way: then until they stay the same.
    """
    rows, before = rows_of(run, measured=True), -1
    try:
        while (found := rows.count(database)) != before and any(one.state in LOST for one in done):
            before = found
            time.sleep(SETTLED_S)
    except (WorkshopError, psycopg2.Error) as error:
        return None, [redact(error)]
    return found, []


def compare_loads(reports: Mapping[str, LoadReport]) -> pd.DataFrame:
    """Loads side by side: a column each; rows a second, and durations in milliseconds."""
    first = next(iter(reports.values())).throughput
    return pd.DataFrame(
        {
            name: {
                "rows": f"{r.succeeded:,}",
                "rows/s": f"{r.throughput:,.0f}",
                "× the first": f"{r.throughput / first:.1f}" if first else "",
                "statement, average (ms)": f"{times.mean * 1e3:.2f}",
                "statement, p50 (ms)": f"{times.percentile(50) * 1e3:.2f}",
                "statement, p95 (ms)": f"{times.percentile(95) * 1e3:.2f}",
                "conflicts": f"{r.conflicts}",
                "the workers' own time": f"{r.cpu_share:.0%}",
                "limited by": r.limited_by,
            }
            for name, r in reports.items()
            if len(times := r.times())
        }
    )


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
    content = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%S%z", stamp), "scenarios": found}
    name = time.strftime("results_%Y%m%d_%H%M%S", stamp)
    for number in itertools.count(1):
        path = folder / (f"{name}_{number}.json" if number > 1 else f"{name}.json")
        with contextlib.suppress(FileExistsError):
            with contextlib.suppress(PermissionError, NotADirectoryError, FileNotFoundError):
                path.touch(exist_ok=False)  # of other errors, writing it says what is wrong
            break
    write_json(path, content)
    return path


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    """How figures are spread, by nearest rank, in their unit; None of none."""
    found = sorted(values)
    if not found:
        return None
    named = {"median": 50, "p95": 95, "p99": 99}
    return {
        "min": found[0],
        "max": found[-1],
        "avg": sum(found) / len(found),
        **{name: percentile(found, q) for name, q in named.items()},
    }
