"""Run an insert load, or a stream of requests, and report it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from workshop_lib.database import Database
from workshop_lib.dataset import create_schema, create_table
from workshop_lib.errors import DataError, WorkshopError
from workshop_lib.load.drivers import Driver, run_jobs
from workshop_lib.load.jobs import InsertJob, StreamJob, WarmJob
from workshop_lib.load.report import SERVED, LoadReport, count_settled
from workshop_lib.load.rows import count_rows, delete_rows
from workshop_lib.load.scenario import InsertLoad, StreamLoad
from workshop_lib.load.traffic import requests
from workshop_lib.progress import progress_bar

AHEAD_S = 0.3
"""How long before a stream begins all workers have their jobs, seconds."""
WARM_S = 60.0


def run_inserts(
    database: Database, load: InsertLoad, driver: Driver, *, run: str = "", progress: bool = True
) -> LoadReport:
    """Make the table `business_events` if need be, insert into it, and count.

    It is a closed loop: each worker sends its next statement when the one before is answered. That
    finds out how much the database takes; how long answers take at a given rate of arrivals is
    another question, for `run_stream`.

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


def run_stream(
    database: Database,
    driver: Driver,
    *,
    half_way: Callable[[], object] = lambda: None,
    **load: Any,
) -> LoadReport:
    """Have all workers of a driver serve one stream of requests together.

    Args:
        database: where rows are counted; the workers were given the same one.
        driver: who serves.
        half_way: what to do when half of the seconds are over, such as stopping a cache.
        load: attributes of StreamLoad by name: seconds, rate, ttl_s, threads, closed, …

    Raises:
        DataError: a value is out of range.

    """
    stream = StreamLoad(**load)
    stream.check()
    driver.prepare()
    run, workers, total = secrets.randbits(31), driver.at_once, 0
    if not stream.closed:
        total = sum(1 for _ in requests(stream.rate, stream.seconds, stream.seed, run))
    begins_at = time.time() + AHEAD_S
    jobs = [
        StreamJob(
            run=run,
            worker=number,
            of=workers,
            share=len(range(number, total, workers)),
            begins_at=begins_at,
            load=stream,
        )
        for number in range(workers)
    ]
    timer = threading.Timer(begins_at + stream.seconds / 2 - time.time(), half_way)
    timer.start()
    try:
        done, interrupted = run_jobs(driver, jobs, stream.seconds + 2 * stream.give_up_s)
    finally:
        timer.cancel()  # after an Interrupt or an error its time may not have come
        timer.join()
    ends = [at + took for one in done for at, took, source, _ in one.calls if source in SERVED]
    seconds = max([stream.seconds, *(end / 1e6 for end in ends)])
    how: Any = {"seconds": seconds, "interrupted": interrupted, "unit": "requests"}
    return LoadReport.of(
        driver, done, *count_settled(database, run, done), run=run, load=stream, **how
    )


def warm_cache(driver: Driver, ttl_s: float) -> int:
    """Bring every answer that a stream asks for into the workers' cache.

    Returns:
        How many answers there are.

    Raises:
        WorkshopError: they could not be had.

    """
    ((done,), _) = run_jobs(driver, [WarmJob(ttl_s=ttl_s)], WARM_S)
    if done.state != "answered":
        raise WorkshopError(f"The cache was not warmed: {' '.join(done.errors)}.")
    return done.success_count
