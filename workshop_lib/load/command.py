"""What `workshop load` does, without the command line around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2

from workshop_lib import services
from workshop_lib.costs import Cost
from workshop_lib.database import Database
from workshop_lib.errors import DataError, SettingsError, WorkshopError, redact
from workshop_lib.load.cost import FUNCTION_MB, format_cost, load_cost
from workshop_lib.load.drivers import MAX_EXECUTIONS, Driver, LambdaWorkers, LocalWorkers
from workshop_lib.load.interrupts import one_interrupt
from workshop_lib.load.jobs import Done
from workshop_lib.load.mixed import Queue, new_number, run_mixed
from workshop_lib.load.report import LoadReport, compare_loads, save_reports
from workshop_lib.load.rows import count_rows, delete_rows, rows_named
from workshop_lib.load.run import new_run, run_inserts
from workshop_lib.load.scenario import Which, read_mixed, read_scenario
from workshop_lib.load.worker import ClientConfig, metrics_namespace
from workshop_lib.paths import display_path
from workshop_lib.prices import load_prices
from workshop_lib.queues import delete_queues, describe_queue
from workshop_lib.results import ready_folder
from workshop_lib.services import endpoints as places
from workshop_lib.settings import Settings, load_settings
from workshop_lib.workshop import open_workshop

PROCESSES = 4
HERE = ("127.", "localhost", "::1", "/")
"""How the name of a host begins that is this machine; a path is a socket's."""
Say = Callable[[object], object]


@dataclass(kw_only=True)
class Outcome:
    """What a command has done so far, and what it does with it at its end, however it ends.

    Attributes:
        settings: in force.
        keep: do not delete the rows.
        folder: for the results file.
        say: told what happens.
        memory: of the function that is paid for, MB; None where processes write to AWS. Where
            nothing is paid for, what a function would have if the work were done on AWS.
        table_rows: of the table that a mixed load reads.
        runs: of which rows may be in the tables.
        reports, costs: by the names of the loads.
        cleared: the rows are where they should be.

    """

    settings: Settings
    keep: bool
    folder: Path
    say: Say
    memory: float | None = FUNCTION_MB
    table_rows: int = 0
    runs: list[str | int] = field(default_factory=list)
    reports: dict[str, LoadReport] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    cleared: bool = True

    def use(self, function: str, at_once: int, region: str | None) -> tuple[LambdaWorkers, Done]:
        """A driver for a Lambda function, whose memory is paid for; and what it says of itself."""
        namespace = self.settings.workshop_namespace
        driver = LambdaWorkers(function, at_once, region=region, namespace=namespace)
        found = driver.describe()
        self.memory = found.memory_mb or FUNCTION_MB
        return driver, found

    def add(self, name: str, report: LoadReport) -> None:
        """Say what came of a load, and what it cost."""
        prices, how = load_prices(), {"function_mb": self.memory}
        cost = load_cost(report, prices, **how, table_rows=self.table_rows, kept=self.keep)
        on_aws, today = places.is_on_aws(self.settings), datetime.now(UTC).date()
        self.say(f"{report}\n{format_cost(cost, prices, today, **how, on_aws=on_aws)}")
        self.reports[name], self.costs[name] = report, cost

    def end(self, database: Database) -> None:
        """Compare and save the reports, and delete the rows."""
        for report in self.reports.values():
            if report.unit == "messages" and len(report.calls):
                self.say(f"\n{report.by_action().round(2).to_string()}\n")
        inserts = {name: r for name, r in self.reports.items() if r.unit == "rows"}
        if any(len(report.calls) for report in inserts.values()):
            self.say(f"\n{compare_loads(inserts).to_string()}\n")
        for run in self.runs:
            self._clear(database, run)
        if self.reports:
            path = save_reports(self.reports, self.folder, self.costs)
            self.say(f"Results: {display_path(path)}")

    def _clear(self, database: Database, run: str | int) -> None:
        later = f"`workshop load clean {run}` deletes them."
        try:
            if self.keep:
                self.say(f"{count_rows(database, run):,} rows are kept, of run {run}. {later}")
            else:
                deleted = delete_rows(database, run)
                self.say(f"{deleted:,} rows of run {run} deleted, those of a warm-up among them")
        except (WorkshopError, psycopg2.Error) as error:
            self.cleared = False
            self.say(
                f"The rows of run {run} could not be deleted: {redact(error)} "
                f"Once that is mended, {later}"
            )


def run_insert_loads(
    say: Say, config: str | Path, which: Which, *, at_once: int | None, keep: bool, out: Path,
    **options: object,
) -> Outcome:  # fmt: skip
    """Run one or both scenarios, compare them, delete their rows again, and write the results.

    However it ends: what there is by then is reported, deleted and written.

    Args:
        say: told what happens.
        config, which, options: what to run, as `read_scenario` reads it; by the scenario's Lambda
            function if it names one, else by processes on this machine.
        at_once: workers at the same time; None for the usual number.
        keep: do not delete the rows.
        out: folder for the results file.

    Raises:
        WorkshopError: the scenario, the folder, the services or the workers could not be had.

    """
    scenario, settings = read_scenario(config, **options), load_settings().values
    loads, function = scenario.loads(which), scenario.lambda_function_name
    if function:
        _refuse_a_database_here(settings, function)
    found = Outcome(settings=settings, keep=keep, folder=ready_folder(out), say=say)
    most = max(load.workers for load in loads.values())
    with services.session(settings) as endpoints, _open(endpoints, settings) as database:
        say(f"Database: {endpoints.database.label}")
        try:
            driver: Driver
            if function:
                region = scenario.region or places.external_region(settings)
                driver, _ = found.use(function, min(at_once or MAX_EXECUTIONS, most), region)
            else:
                name = settings.load_function
                by = f" (--function-name {name}: by AWS Lambda)" if name else ""
                say(f"By processes on this machine{by}.")
                found.memory = None if places.is_on_aws(settings) else FUNCTION_MB
                given = ClientConfig(endpoints.database, settings.workshop_namespace)
                driver = LocalWorkers(given, min(at_once or PROCESSES, most))
            with driver:
                for name, load in loads.items():
                    say(f"\n{name}: {load.workers:,} workers, {load.planned:,} rows")
                    run = new_run()
                    found.runs.append(run)
                    found.add(name, run_inserts(database, load, driver, run=run))
                    if found.reports[name].interrupted:
                        break
        finally:
            with one_interrupt(times=0, last=False):
                found.end(database)
    return found


def run_mixed_load(
    say: Say, config: str | Path, *, by_function: bool | None, at_once: int | None, keep: bool,
    out: Path, **options: object,
) -> Outcome:  # fmt: skip
    """Send a mixed load through the queue, have it processed, and delete its rows again.

    Args:
        say: told what happens.
        config, options: what to send, as `read_mixed` reads it.
        by_function: the queue is mapped to a Lambda function; else processes here do.
            None: it is if the settings name the function, with which processes would compete.
        at_once, keep, out: as in `run_insert_loads`.

    Raises:
        WorkshopError: the scenario, the folder, the services or the workers could not be had.

    """
    scenario, settings = read_mixed(config, **options), load_settings().values
    function = settings.load_function if settings.queue_url else None
    others = bool(function) if by_function is None else by_function
    found = Outcome(settings=settings, keep=keep, folder=ready_folder(out), say=say)
    _refuse_missing_services(settings, at_once, others=others, reader=scenario.reads_elsewhere)
    found.memory = None if places.is_on_aws(settings) and not others else FUNCTION_MB
    if others and function:
        _, said = found.use(function, 1, places.external_region(settings))
        if scenario.reads_elsewhere and not said.reader:
            raise SettingsError(
                f"Reads cannot go elsewhere (--reads-elsewhere): the function {function} is told "
                "no other endpoint. Set DSQL_READ_ENDPOINT among its environment variables, and "
                "let it sign in there; or have processes here do the work: --no-by-function."
            )
    # If processes were asked for, no function takes their place, either.
    how: Any = {"load_function": None if others else "", "workshop_linger_seconds": 0.0}
    with services.session(settings), closing(open_workshop("load_mixed", **how)) as ws:
        ws.load_table("type")
        found.table_rows = ws.load_table("transactions").rows
        by = f"Lambda: {function or 'the function it is mapped to'}"
        say(
            f"Database: {ws.endpoints.database.label}\nQueue: {ws.messaging.label}\n"
            f"Processed by {by if others else 'processes on this machine'}"
        )
        if others:
            say(f"How long statements take: CloudWatch, {metrics_namespace(ws.namespace)}")
        elif function:
            say(f"If the queue is still mapped to {function}, the two compete for its messages.")
        limits = (scenario.visibility_timeout_s, scenario.max_receives)
        urls = ws.open_queue("load", visibility_timeout_s=limits[0], max_receives=limits[1])
        if settings.queue_url:
            say(f"It is used as it is: {describe_queue(ws.sqs, ws.messaging)}.")
        run, queue_is_ours = new_number(), True
        found.runs.append(run)
        try:
            driver = None if others else ws.load_workers(at_once or PROCESSES, metrics=True)
            try:
                report = run_mixed(ws.database, Queue(ws.sqs, *urls), scenario, driver, run=run)
            except WorkshopError:
                queue_is_ours = False  # it may hold messages of another load test
                raise
            found.add("mixed", report)
        finally:
            with one_interrupt(times=0, last=False):
                found.end(ws.database)
                if queue_is_ours:
                    delete_queues(ws.sqs, ws.messaging, ws.namespace)
    return found


def clean(run: str | None, say: Say) -> bool:
    """Delete the rows of a run, or of all load tests, from both tables; counted before and after.

    Returns:
        Whether none is left.

    Raises:
        DataError: there is no such run, or this cannot be the name of one.
        WorkshopError: the database could not be had.

    """
    settings, left, there = load_settings().values, 0, 0
    found = rows_named(run)
    with services.session(settings) as endpoints, _open(endpoints, settings) as database:
        for rows in found:
            before = rows.count(database)
            deleted = rows.delete(database) if before else 0
            after = rows.count(database)
            left, there = left + after, there + before
            say(f"{rows.table}: {before:,} rows before, {deleted:,} deleted, {after:,} left")
    if run and not there:
        raise DataError(f"There is no run {run!r}, or it left no rows.")
    return left == 0


def _open(endpoints: Any, settings: Settings) -> closing[Database]:
    return closing(Database(endpoints.database, settings.workshop_namespace, pool_min=1))


def _refuse_a_database_here(settings: Settings, function: str) -> None:
    """A function on AWS cannot reach this machine.

    Raises:
        SettingsError: the database is on it.

    """
    database = places.external_database(settings)
    if database is None or database.host.startswith(HERE):
        raise SettingsError(
            f"The Lambda function {function} (--function-name, or lambda_function_name in the "
            "scenario file) is for a database on AWS, and this one is on this machine, where no "
            "Lambda function can reach it. Set DSQL_ENDPOINT and AWS_REGION; or have processes "
            'here do the work: --function-name "".'
        )


def _refuse_missing_services(
    settings: Settings, at_once: int | None, *, others: bool, reader: bool
) -> None:
    """What a mixed load was told to use has to be there.

    Raises:
        SettingsError: it is not.

    """
    refusals = {
        "--by-function needs the queue that the Lambda function is mapped to: set QUEUE_URL. "
        "The local queue is an emulation, which no function processes.": (
            others and not settings.queue_url
        ),
        "--at-once is the number of processes here, and a Lambda function processes the queue. "
        "Its copies are limited by the stack's QueueConcurrency; or give --no-by-function.": (
            others and at_once is not None
        ),
        "Reads cannot go elsewhere (--reads-elsewhere): DSQL_READ_ENDPOINT is not set, so "
        "there is no other endpoint.": reader and not settings.dsql_read_endpoint,
    }
    for said, applies in refusals.items():
        if applies:
            raise SettingsError(said)
