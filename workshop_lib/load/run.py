"""Run an insert load, and report it."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Any

from workshop_lib.database import Database
from workshop_lib.dataset import create_schema, create_table
from workshop_lib.errors import DataError
from workshop_lib.load.drivers import Driver, run_jobs
from workshop_lib.load.jobs import InsertJob
from workshop_lib.load.report import LoadReport, count_settled
from workshop_lib.load.rows import count_rows, delete_rows
from workshop_lib.load.scenario import InsertLoad
from workshop_lib.progress import progress_bar


def run_inserts(
    database: Database, load: InsertLoad, driver: Driver, *, run: str = "", progress: bool = True
) -> LoadReport:
    """Make the table `business_events` if need be, insert into it, and count.

    It is a closed loop: each worker sends its next statement when the one before is answered. That
    finds out how much the database takes; how long answers take at a given rate of arrivals is
    another question: notebook 14 asks it.

    Args:
        database: where the rows are counted; the workers were given the same one.
        load: what to do.
        driver: who does it.
        run: its name; a new one if there is none (`new_run`).
        progress: with a progress bar.

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the load is out of range, or there are rows of such a run already.
        KeyboardInterrupt: it came during the warm-up, whose rows are deleted.

    """
    load.check()
    create_schema(database)
    create_table(database, "business_events")
    run = run or new_run()
    if there := count_rows(database, run):
        raise DataError(
            f"There are {there:,} rows of a run {run} already, which would be counted with this "
            f"one's. Give it another name, or delete them: load.delete_rows(ws.database, {run!r})."
        )
    warm_up = [InsertJob(run=run, worker=n, load=load, warm_up=True) for n in range(load.warm_up)]
    jobs = [InsertJob(run=run, worker=n, load=load) for n in range(load.workers)]
    if run_jobs(driver, warm_up, load.time_limit_s)[1]:
        delete_rows(database, run)
        raise KeyboardInterrupt
    began = time.perf_counter()
    with progress_bar(load.planned if progress else 0, "insert") as bar:
        share = jobs[0].planned
        done, interrupted = run_jobs(driver, jobs, load.time_limit_s, lambda: bar.update(share))
    how: Any = {"seconds": time.perf_counter() - began, "interrupted": interrupted, "unit": "rows"}
    return LoadReport.of(
        driver, done, *count_settled(database, run, done), run=run, load=load, **how
    )


def new_run() -> str:
    """A name for an insert load: when it began, and a few digits against another at that time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
