"""What `workshop load` does, without the command line around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from workshop_lib import services
from workshop_lib.database import Database
from workshop_lib.load.drivers import Driver, LambdaWorkers, LocalWorkers
from workshop_lib.load.inserts import (
    InsertReport,
    compare_storms,
    count_rows,
    delete_rows,
    run_inserts,
    save_reports,
    write_report,
)
from workshop_lib.load.means import Equipment
from workshop_lib.load.mixed import MixedReport, Queue, read_mixed, run_mixed
from workshop_lib.load.rows import count_transactions, delete_transactions
from workshop_lib.load.scenario import LAMBDAS_AT_ONCE, InsertScenario, Which
from workshop_lib.messaging import delete_queues
from workshop_lib.services.functions import lambda_client
from workshop_lib.settings import load_settings
from workshop_lib.workshop import open_workshop

PROCESSES = 4


def run_storms(
    scenario: InsertScenario,
    which: Which,
    *,
    by_lambda: bool,
    at_once: int | None,
    keep: bool,
    out: Path,
    say: Callable[[str], Any],
) -> tuple[list[InsertReport], Path]:
    """Run one or both scenarios, compare them, and delete their rows again.

    Args:
        scenario, which: what to run.
        by_lambda: by the scenario's Lambda function; else by processes on this machine.
        at_once: workers at the same time; None for the usual number.
        keep: do not delete the rows.
        out: folder for the results file.
        say: told what happens.

    Returns:
        The reports, and where they were written; of an interrupted run, those there are.

    Raises:
        WorkshopError: the services or the workers could not be had.

    """
    settings = load_settings().values
    reports: dict[str, InsertReport] = {}
    with services.session(settings) as endpoints:
        database = Database(endpoints.database, settings.workshop_namespace, pool_min=1)
        equipment = Equipment(endpoints.database, settings.workshop_namespace)
        say(f"Database: {endpoints.database.label}")
        with _driver(scenario, equipment, by_lambda=by_lambda, at_once=at_once) as driver:
            for name, storm in scenario.storms(which).items():
                say(f"\n{name}: {storm.workers:,} workers, {storm.planned:,} rows")
                report = reports[name] = run_inserts(database, storm, driver)
                say(str(report))
                if report.interrupted:
                    break
        path = save_reports(reports, out)
        if len(reports) > 1:
            say(f"\n{compare_storms(reports).to_string()}\n")
        for name, report in reports.items():
            before = count_rows(database, report.run)
            if not keep:
                deleted = delete_rows(database, report.run)
                say(f"{name}: {before:,} rows in the table, {deleted:,} deleted")
        database.close()
    return list(reports.values()), path


def run_queue(
    options: dict[str, Any],
    config: Path | None,
    *,
    by_lambda: bool,
    at_once: int | None,
    keep: bool,
    out: Path,
    say: Callable[[str], Any],
) -> tuple[MixedReport, Path]:
    """Send a mixed load through the queue, have it worked off, and delete its rows again.

    Args:
        options: of MixedScenario by name; those that are not None win over the file.
        config: a scenario file; None for the usual values.
        by_lambda: the queue is mapped to a Lambda function; else processes here work it off.
        at_once, keep, out, say: as in `run_storms`.

    Returns:
        The report, and where it was written.

    Raises:
        DataError: a name or value of the scenario is not usable.
        WorkshopError: the services or the workers could not be had.

    """
    scenario = read_mixed(config, **options)
    with services.session(load_settings().values), closing(open_workshop("load_mixed")) as ws:
        for table in ("type", "transactions"):
            ws.load_table(table)
        say(f"Database: {ws.endpoints.database.label}\nQueue: {ws.messaging.label}")
        urls = ws.open_queue(
            "load",
            visibility_timeout_s=scenario.visibility_timeout_s,
            max_receives=scenario.max_receives,
        )
        driver = None if by_lambda else ws.load_workers(at_once or PROCESSES, metrics=True)
        report = run_mixed(ws.database, Queue(ws.sqs, *urls), scenario, driver)
        say(str(report))
        path = write_report(report.describe(), out)
        before = count_transactions(ws.database, report.run)
        if not keep:
            deleted = delete_transactions(ws.database, report.run)
            say(f"{before:,} rows in the table, {deleted:,} deleted")
        delete_queues(ws.sqs, ws.messaging, ws.namespace)
    return report, path


@contextmanager
def _driver(
    scenario: InsertScenario, equipment: Equipment, *, by_lambda: bool, at_once: int | None
) -> Iterator[Driver]:
    if by_lambda:
        number = at_once or LAMBDAS_AT_ONCE
        client = lambda_client(scenario.region, at_once=number)
        with LambdaWorkers(client, scenario.lambda_function_name, number) as functions:
            yield functions
    else:
        with LocalWorkers(equipment, at_once or PROCESSES) as processes:
            yield processes
