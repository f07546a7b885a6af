"""What `workshop load` does, without the command line around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg2

from workshop_lib import services
from workshop_lib.costs import Cost, Prices
from workshop_lib.database import Database
from workshop_lib.errors import SettingsError, WorkshopError, redact
from workshop_lib.load.bill import format_cost, insert_cost, mixed_cost
from workshop_lib.load.clients import ClientConfig
from workshop_lib.load.drivers import MAX_EXECUTIONS, LambdaWorkers, LocalWorkers
from workshop_lib.load.inserts import (
    InsertReport,
    compare_loads,
    new_run,
    run_inserts,
    save_reports,
    write_report,
)
from workshop_lib.load.interrupts import ignore_signals
from workshop_lib.load.messages import metrics_namespace
from workshop_lib.load.mixed import (
    MixedReport,
    MixedScenario,
    Queue,
    new_run_number,
    read_mixed,
    run_mixed,
)
from workshop_lib.load.rows import all_rows, events_of, rows_of, transactions_of, warm_up_of
from workshop_lib.load.scenario import InsertScenario, Which, read_file
from workshop_lib.paths import display_path
from workshop_lib.prices import load_prices
from workshop_lib.queues import delete_queues
from workshop_lib.results import ready_folder
from workshop_lib.services.endpoints import (
    external_database,
    external_messaging,
    external_reader,
    external_region,
    is_on_aws,
)
from workshop_lib.services.functions import MEMORY_MB, LambdaClients
from workshop_lib.settings import Settings, load_settings
from workshop_lib.workshop import open_workshop

PROCESSES = 4
OF_THE_QUEUE = ("visibility_timeout_s", "max_receives")
HERE = ("127.", "localhost", "::1", "/")
"""How the name of a host begins that is this machine; a path is a socket's."""
Say = Callable[[str], Any]


def run_insert_loads(
    scenario: InsertScenario, which: Which, *, at_once: int | None, keep: bool, out: Path, say: Say
) -> tuple[list[InsertReport], bool]:
    """Run one or both scenarios, compare them, delete their rows again, and write the results.

    However it ends: what there is by then is reported, deleted and written.

    Args:
        scenario, which: what to run; by the scenario's Lambda function if it names one, else by
            processes on this machine.
        at_once: workers at the same time; None for the usual number.
        keep: do not delete the rows.
        out: folder for the results file.
        say: told what happens.

    Returns:
        The reports; and whether the rows are where they should be.

    Raises:
        WorkshopError: the folder, the services or the workers could not be had.

    """
    loads = scenario.loads(which)
    folder = ready_folder(out)
    settings = load_settings().values
    by_lambda = bool(scenario.lambda_function_name)
    if by_lambda:
        _refuse_a_database_here(settings, str(scenario.lambda_function_name))
    region = scenario.region or external_region(settings)
    prices = load_prices()
    costs: dict[str, Cost] = {}
    runs: dict[str, str] = {}
    reports: dict[str, InsertReport] = {}
    most = max(load.workers for load in loads.values())
    with services.session(settings) as endpoints, _open(endpoints, settings) as database:
        config = ClientConfig(endpoints.database, settings.workshop_namespace)
        say(f"Database: {endpoints.database.label}")
        if settings.load_function and not by_lambda:
            say(
                "By processes on this machine; the AWS Lambda function would do it with "
                f"--function-name {settings.load_function}."
            )
        try:
            with _driver(scenario, region, config, most, at_once) as driver:
                memory = _memory_here(settings)
                if isinstance(driver, LambdaWorkers):
                    memory = driver.ask().memory_mb or MEMORY_MB
                for name, load in loads.items():
                    say(f"\n{name}: {load.workers:,} workers, {load.planned:,} rows")
                    runs[name] = new_run()
                    reports[name] = run_inserts(database, load, driver, run=runs[name])
                    say(str(reports[name]))
                    costs[name] = insert_cost(reports[name], prices, function_mb=memory, kept=keep)
                    say(_format_cost(costs[name], prices, memory, settings, region))
                    if reports[name].interrupted:
                        break
        finally:
            with ignore_signals():
                if any(len(report.statements) for report in reports.values()):
                    say(f"\n{compare_loads(reports).to_string()}\n")
                cleared = [
                    _clear(database, run, keep, lambda said, name=name: say(f"{name}: {said}"))  # type: ignore[misc]
                    for name, run in runs.items()
                ]
                if reports:
                    say(f"Results: {display_path(save_reports(reports, folder, costs))}")
    return list(reports.values()), all(cleared)


def run_mixed_load(
    options: dict[str, Any],
    config: str | Path,
    *,
    by_function: bool | None,
    at_once: int | None,
    keep: bool,
    out: Path,
    say: Say,
) -> tuple[MixedReport, bool]:
    """Send a mixed load through the queue, have it worked off, and delete its rows again.

    Args:
        options: of MixedScenario by name; those that are not None win over the file.
        config: a scenario file, or the name of one in data/scenarios/.
        by_function: the queue is mapped to a Lambda function; else processes here work it off.
            None: it is if the settings name the function, with which processes would compete.
        at_once, keep, out, say: as in `run_insert_loads`.

    Returns:
        The report; and whether the rows are where they should be.

    Raises:
        DataError: a name or value of the scenario is not usable.
        WorkshopError: the folder, the services or the workers could not be had.

    """
    scenario = read_mixed(config, **options)
    folder = ready_folder(out)
    settings = load_settings().values
    mapped = settings.load_function if settings.queue_url else None
    others = bool(mapped) if by_function is None else by_function
    _refuse_missing_services(settings, others, scenario.reads_elsewhere)
    if others and at_once is not None:
        raise SettingsError(
            "--at-once is the number of processes here, and a Lambda function processes the queue. "
            "Its copies are limited by the stack's QueueConcurrency; or give --no-by-function."
        )
    prices, run = load_prices(), new_run_number()
    report, queue_is_ours = None, True
    with (
        services.session(settings),
        closing(
            open_workshop(
                "load_mixed",
                # If processes were asked for, no function takes their place, either.
                load_function=None if others else "",
                workshop_linger_seconds=0.0,
            )
        ) as ws,
    ):
        ws.load_table("type")
        table_rows = ws.load_table("transactions").rows
        say(f"Database: {ws.endpoints.database.label}\nQueue: {ws.messaging.label}")
        say(_who_processes(mapped, others))
        memory = _memory_here(settings)
        if others:
            memory = _memory_of_function(settings, mapped, scenario.reads_elsewhere)
        urls = ws.open_queue(
            "load",
            visibility_timeout_s=scenario.visibility_timeout_s,
            max_receives=scenario.max_receives,
        )
        queue = Queue(ws.sqs, *urls)
        if settings.queue_url:
            scenario = _with_queue_s_own(scenario, queue, config, options)
        try:
            driver = None if others else ws.load_workers(at_once or PROCESSES, metrics=True)
            try:
                report = run_mixed(ws.database, queue, scenario, driver, run=run)
            except WorkshopError:
                queue_is_ours = False  # it may hold messages of another load test
                raise
            say(str(report))
        finally:
            with ignore_signals():
                table = report.by_action() if report else None
                if table is not None and len(table):
                    say(f"\n{table.to_string()}\n")
                if report and report.by_others:
                    place = metrics_namespace(ws.namespace)
                    say(f"How long statements took is in CloudWatch, namespace {place}.")
                cleared = _clear(ws.database, run, keep, say)
                if report:
                    cost = mixed_cost(report, prices, table_rows, function_mb=memory, kept=keep)
                    say(_format_cost(cost, prices, memory, settings, external_region(settings)))
                    content = {**report.describe(), "cost_usd": cost.total}
                    say(f"Results: {display_path(write_report(content, folder))}")
                if queue_is_ours:
                    delete_queues(ws.sqs, ws.messaging, ws.namespace)
    return report, cleared


def _memory_here(settings: Settings) -> float | None:
    """What a function would have if the work of processes here were done on AWS, MB.

    None where it is done there: no function is paid for.
    """
    return None if is_on_aws(settings) else MEMORY_MB


def _memory_of_function(settings: Settings, name: str | None, reads_elsewhere: bool) -> float:
    """The memory of the function that works the queue off, MB; the template's if it says nothing.

    Raises:
        SettingsError: reads are to go elsewhere, and it does not say that it knows where.

    """
    said = None
    if name:
        with (
            LambdaWorkers(LambdaClients(external_region(settings), 1), name, 1) as function,
            suppress(WorkshopError),  # the queue will show whether it works
        ):
            said = function.ask()
    if reads_elsewhere and not (said and said.reader):
        it = f"The function {name}" if name else "The function that works off the queue"
        raise SettingsError(
            f"Reads cannot go elsewhere (--reads-elsewhere): {it} does not say that it knows "
            "another endpoint, so it would read from the writer. Set DSQL_READ_ENDPOINT among its "
            "environment variables, let it sign in there, and name it by LOAD_FUNCTION; or have "
            "processes here do the work: --no-by-function."
        )
    return (said and said.memory_mb) or MEMORY_MB


def _format_cost(
    cost: Cost, prices: Prices, memory: float | None, settings: Settings, region: str | None
) -> str:
    today, on_aws = datetime.now(UTC).date(), is_on_aws(settings)
    return format_cost(cost, prices, today, function_mb=memory, on_aws=on_aws, region=region)


def _with_queue_s_own(
    scenario: MixedScenario, queue: Queue, config: str | Path, options: dict[str, Any]
) -> MixedScenario:
    """The scenario with the visibility timeout and the receives that a given queue has.

    Raises:
        SettingsError: the file or an option names others.

    """
    given = {name: value for name, value in options.items() if value is not None}
    named = {**read_file(config), **given}
    own = dict(zip(OF_THE_QUEUE, queue.manners(), strict=True))
    for name, value in own.items():
        if name in named and getattr(scenario, name) != value:
            raise SettingsError(
                f"{name} is {getattr(scenario, name)} in the scenario, and {value} in the "
                "queue of QUEUE_URL, which is used as it is. Change the queue, or leave the name "
                "out."
            )
    return msgspec.structs.replace(scenario, **own)


def clean(run: str | None, say: Say) -> bool:
    """Delete the rows of a run, or of all load tests, from both tables; counted before and after.

    Returns:
        Whether none is left.

    Raises:
        DataError: this cannot be the name of a run.
        WorkshopError: the database could not be had.

    """
    settings = load_settings().values
    found = rows_of(run) if run is not None else all_rows()
    left = 0
    with services.session(settings) as endpoints, _open(endpoints, settings) as database:
        for rows in found:
            before = rows.count(database)
            deleted = rows.delete(database) if before else 0
            after = rows.count(database)
            left += after
            say(f"{rows.table}: {before:,} rows before, {deleted:,} deleted, {after:,} left")
    return left == 0


def _open(endpoints: Any, settings: Settings) -> closing[Database]:
    return closing(Database(endpoints.database, settings.workshop_namespace, pool_min=1))


def _clear(database: Database, run: str | int, keep: bool, say: Say) -> bool:
    """Delete the rows of an insert load (by name) or mixed load (by number), and say so.

    Returns:
        Whether none is left that should not be.

    """
    rows = events_of(run) if isinstance(run, str) else transactions_of(run)
    try:
        if keep:
            say(
                f"{rows.count(database):,} rows are kept, of run {run}. "
                f"`workshop load clean {run}` deletes them."
            )
            return True
        of_warm_up = warm_up_of(run).count(database) if isinstance(run, str) else 0
        deleted = rows.delete(database)
    except (WorkshopError, psycopg2.Error) as error:
        said = redact(error)
        say(
            f"The rows of run {run} could not be deleted: {said} "
            f"Once that is mended, `workshop load clean {run}` deletes them."
        )
        return False
    among = f", {of_warm_up:,} of them of the warm-up" if of_warm_up else ""
    say(f"{deleted:,} rows deleted{among}")
    return True


def _who_processes(mapped: str | None, others: bool) -> str:
    """A line about it."""
    by = "processes on this machine"
    if others:
        name = f"the AWS Lambda function {mapped}" if mapped else "the function it is mapped to"
        by = f"{name} (--no-by-function: {by})"
    elif mapped:
        by += (
            f". Is the mapping of the queue to {mapped} disabled? The two would compete, and the "
            "report would not include what the function takes."
        )
    return f"Processed by: {by}"


def _refuse_a_database_here(settings: Settings, function: str) -> None:
    """A function on AWS cannot reach this machine.

    Raises:
        SettingsError: the database is on it.

    """
    database = external_database(settings)
    if database is None or database.host.startswith(HERE):
        raise SettingsError(
            f"The Lambda function {function} (--function-name, or lambda_function_name in the "
            "scenario file) is for a database on AWS, and this one is on this machine, where no "
            "Lambda function can reach it. Set DSQL_ENDPOINT and AWS_REGION; or have processes "
            'here do the work: --function-name "".'
        )


def _refuse_missing_services(settings: Settings, by_function: bool, reads_elsewhere: bool) -> None:
    """What a mixed load was told to use has to be there.

    Raises:
        SettingsError: it is not.

    """
    messaging = external_messaging(settings)
    if by_function and not (messaging and messaging.queue_url):
        raise SettingsError(
            "--by-function needs the queue that the Lambda function is mapped to: set QUEUE_URL. "
            "The local queue is an emulation, which no function works off."
        )
    if reads_elsewhere and external_reader(settings) is None:
        raise SettingsError(
            "Reads cannot go elsewhere (--reads-elsewhere): DSQL_READ_ENDPOINT is not set, so "
            "there is no other endpoint."
        )


def _driver(
    scenario: InsertScenario,
    region: str | None,
    config: ClientConfig,
    workers: int,
    at_once: int | None,
) -> LambdaWorkers | LocalWorkers:
    """Who does the work: no more at once than there are workers."""
    if name := scenario.lambda_function_name:
        number = min(at_once or MAX_EXECUTIONS, workers)
        return LambdaWorkers(LambdaClients(region, number), name, number, config.namespace)
    return LocalWorkers(config, min(at_once or PROCESSES, workers))
