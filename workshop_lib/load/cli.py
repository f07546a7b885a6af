"""`workshop load`: load tests from the shell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from workshop_lib import load as api
from workshop_lib.errors import SettingsError
from workshop_lib.load.traffic import EVENT_TYPES
from workshop_lib.options import INTERRUPTED, a_file, a_folder
from workshop_lib.paths import HOME, RESULTS, display_path

if TYPE_CHECKING:
    from workshop_lib.costs import Cost
    from workshop_lib.database import Database
    from workshop_lib.settings import Settings
    from workshop_lib.workshop import Workshop

# The scenario file of an insert load, if the folder in which the command is run has one.
CONFIG = Path("config.json")
PROCESSES, EXECUTIONS = 4, 1_000
"""How many workers there are at the same time, if nothing is said."""

at_once_option = click.option(
    "--at-once", type=click.IntRange(1, 1_000),
    help="workers at the same time  [default: 4 processes, 1000 executions of a function]",
)  # fmt: skip
keep_option = click.option("--keep", is_flag=True, help="keep the rows of this run in the table")
out_option = click.option(
    "--out", type=a_folder, default=RESULTS / "load",
    help="folder for the results file  [default: results/load]",
)  # fmt: skip


@click.group()
def load() -> None:
    """Put load on the database and say what it costs.

    Insert loads, and mixed traffic through a queue.
    """


@load.command()
@click.option("--config", type=a_file,
              help="a file, or a name in data/scenarios/  "
                   "[default: config.json, if there is one here; else inserts_laptop]")  # fmt: skip
@click.option("--scenario", "which", type=click.Choice(["1", "2", "both"]), default="both",
              show_default=True, help="1: individual inserts, 2: multi-row inserts")  # fmt: skip
@click.option("--workers", "--num-lambdas", type=int, help="workers, each with its own connection")
@click.option("--iterations", type=int, help="rounds of each worker")
@click.option("--count", type=int,
              help="INSERTs of a round, one row each (1); rows of its one INSERT (2)")  # fmt: skip
@click.option("--event-type", type=click.Choice(EVENT_TYPES), help="what the rows say")
@click.option("--warm-up", type=int, help="INSERTs before the measurement, not counted in it")
@click.option("--no-warm-up", "warm_up", flag_value=0, type=int, help="the same as --warm-up 0")
@click.option("--function-name", help="the Lambda function that inserts; empty: local processes")
@click.option("--region", help="where that function is  [default: AWS_REGION]")
@at_once_option
@keep_option
@out_option
def inserts(
    *, config: Path | None, which: str, function_name: str | None, region: str | None,
    at_once: int | None, keep: bool, out: Path, **options: Any,
) -> None:  # fmt: skip
    """Compare individual with multi-row inserts; exit code 1 if a row is missing at the end.

    Each worker does its rounds one after another. A round is --count INSERTs of one row each
    (scenario 1), or one INSERT of --count rows (scenario 2).

    Options win over the scenario file. Ctrl-C ends it with a report of what was done so far; the
    rows are deleted anyway.
    """
    from workshop_lib.interrupts import one_interrupt

    if config is None and CONFIG.exists():
        config = CONFIG
        click.echo("Scenario: config.json in this folder (the workshop's: --config inserts_laptop)")
    run_inserts = api.run_inserts  # imported before an interrupt can meet the import
    with one_interrupt():
        scenario = api.read_scenario(config or "inserts_laptop", api.InsertScenario)
        loads, test = scenario.loads(which, **options), _Test(keep, out)
        function = scenario.lambda_function_name if function_name is None else function_name
        if function and not test.on_aws:
            raise SettingsError(
                f"The Lambda function {function} (--function-name, or lambda_function_name in the "
                "scenario file) needs Aurora DSQL: no function can reach a database on this "
                "machine. Set DSQL_ENDPOINT and AWS_REGION; or have processes here do the work: "
                '--function-name "".'
            )
        most = max(load.workers for load in loads.values())
        with test.workshop() as ws:
            driver: Any
            if function:
                place = region or scenario.region
                driver = test.function(function, min(at_once or EXECUTIONS, most), place)
            else:
                driver = ws.load_workers(min(at_once or PROCESSES, most))
            click.echo(f"By {driver.label}")
            for name, one in loads.items():
                click.echo(f"\n{name}: {one.workers:,} workers, {one.planned:,} rows")
                report = run_inserts(ws.database, one, driver)
                test.add(name, report)
                if report.interrupted:
                    break
        test.exit()


@load.command()
@click.option("--config", type=a_file, default="mixed_laptop", show_default=True,
              help="a file, or a name in data/scenarios/")  # fmt: skip
@click.option("--duration", "duration_s", type=float, help="how long rounds are sent, seconds")
@click.option("--wait", "wait_s", type=float, help="from one round to the next, seconds")
@click.option("--messages", "messages_per_batch", type=int, help="of each action in a round")
@click.option("--statements", "statements_per_message", type=int,
              help="how often a message's statement is run")  # fmt: skip
@click.option("--think", "think_ms", type=float, help="pause after a statement, milliseconds")
@click.option("--reads-elsewhere", is_flag=True, default=None,
              help="reads go to DSQL_READ_ENDPOINT, which has to be set")  # fmt: skip
@click.option("--function-name",
              help="the Lambda function that the queue of QUEUE_URL is mapped to; empty: local "
                   "processes  [default: LOAD_FUNCTION]")  # fmt: skip
@at_once_option
@keep_option
@out_option
def mixed(
    *, config: Path, function_name: str | None, at_once: int | None, keep: bool, out: Path,
    **options: Any,
) -> None:  # fmt: skip
    """Send reads and writes through a queue; exit code 1 if a message is unaccounted for.

    They are sent in rounds. A round has --messages messages of each action: SELECT, INSERT and
    SELECT2. A worker runs the statement of its message --statements times. How many executions of
    a function do so at once is its stack's QueueConcurrency.

    Locally the queue is an emulation. Options win over the scenario file. Ctrl-C ends it with a
    report of what was done so far; the rows are deleted anyway.
    """
    from workshop_lib.interrupts import one_interrupt
    from workshop_lib.queues import delete_queues

    run_mixed = api.run_mixed  # imported before an interrupt can meet the import
    with one_interrupt():
        scenario = api.read_scenario(config, api.MixedScenario).changed(options)
        test = _Test(keep, out, load_function=function_name)
        if function_name and not test.settings.queue_url:
            raise SettingsError(
                "--function-name needs the queue that the function is mapped to: set QUEUE_URL. No "
                "function processes the local queue, which is an emulation."
            )
        function = test.settings.load_function if test.settings.queue_url else None
        by_function = test.function(function, 1) if function else None
        reader = by_function.reader if by_function else test.settings.dsql_read_endpoint
        if scenario.reads_elsewhere and not reader:
            raise SettingsError(
                "--reads-elsewhere: who does the work knows no other endpoint. Set "
                "DSQL_READ_ENDPOINT: here for processes, in a function's environment for that."
            )
        with test.workshop() as ws:
            ws.load_table("type")
            test.table_rows = ws.load_table("transactions").rows
            urls = ws.open_queue("load", visibility_timeout_s=30, max_receives=3)
            who = f"the function {function}" if function else "processes on this machine"
            click.echo(f"Queue: {ws.messaging.label}\nProcessed by {who}")
            metrics = api.metrics_namespace(ws.namespace)
            if not ws.messaging.embedded:
                click.echo(f"How long statements take is in CloudWatch, too: {metrics}")
            driver = None if function else ws.load_workers(at_once or PROCESSES, metrics=True)
            queue = api.Queue(ws.sqs, *urls)
            report = run_mixed(ws.database, queue, scenario, driver)
            delete_queues(ws.sqs, ws.messaging, ws.namespace)
            test.add("mixed", report)
        test.exit()


@load.command()
@click.argument("run", required=False)
def clean(run: str | None) -> None:
    """Delete the rows of one load test (RUN: its name), or of all.

    From the tables business_events and transactions, whose other rows stay.
    """
    from workshop_lib.settings import load_settings

    left, found = 0, api.rows_of(run)
    with _workshop(load_settings().values) as ws:
        for rows in found:
            before, deleted = rows.count(ws.database), rows.delete(ws.database)
            left += (after := rows.count(ws.database))
            click.echo(f"{rows.table}: {before:,} rows before, {deleted:,} deleted, {after:,} left")
    sys.exit(1 if left else 0)


@load.command("package")
@click.option("--architecture", type=click.Choice(["arm64", "x86_64"]), default="arm64",
              show_default=True, help="of the function")  # fmt: skip
@click.option("--python", default="3.12", show_default=True, help="of the function's runtime")
@click.option("--out", type=a_file,
              help="the zip  [default: build/load-worker-<architecture>.zip]")  # fmt: skip
def package(architecture: Any, python: str, out: Path | None) -> None:
    """Build the load worker as an AWS Lambda package, for the template's runtime if none is named.

    `workshop aws deploy` does this by itself.
    """
    from workshop_lib.aws.lambda_package import HANDLER, build_package

    path = out or HOME / "build" / f"load-worker-{architecture}.zip"
    built = build_package(path, architecture=architecture, python=python)
    click.echo(f"{built} for Python {python} on {architecture}\nHandler: {HANDLER}")


class _Test:
    """A load test of the shell: what it has done so far, and its end, however it ends.

    Attributes:
        settings: in force.
        on_aws: it is paid for.
        function_mb: memory of the function that is paid for; None if processes write to AWS. If
            nothing is paid for, what a function would have if the work were done on AWS.
        table_rows: of the table that a mixed load reads.
        reports, costs: by the names of the loads.

    """

    def __init__(self, keep: bool, out: Path, **overrides: Any) -> None:
        from workshop_lib.results import ready_folder
        from workshop_lib.services.endpoints import is_on_aws
        from workshop_lib.settings import load_settings

        self.settings, self.keep = load_settings(**overrides).values, keep
        self.folder, self.on_aws = ready_folder(out), is_on_aws(self.settings)
        self.function_mb = None if self.on_aws else api.FUNCTION_MB
        self.table_rows = 0
        self.reports: dict[str, api.LoadReport] = {}
        self.costs: dict[str, Cost] = {}

    def function(self, name: str, at_once: int, region: str | None = None) -> api.LambdaWorkers:
        """A driver for a Lambda function, whose memory is paid for."""
        driver = api.LambdaWorkers(name, at_once, region=region or self.settings.aws_region)
        self.function_mb = driver.memory_mb or api.FUNCTION_MB
        return driver

    @contextmanager
    def workshop(self) -> Iterator[Workshop]:
        """The open workshop; at the end, results are saved and rows deleted."""
        from workshop_lib.interrupts import one_interrupt

        with _workshop(self.settings) as ws:
            click.echo(f"Database: {ws.endpoints.database.label}")
            try:
                yield ws
            finally:
                with one_interrupt(times=0, last=False):
                    self._end(ws.database)

    def add(self, name: str, report: api.LoadReport) -> None:
        """Say what came of a load, and what it cost."""
        from workshop_lib.prices import load_prices

        self.reports[name] = report
        prices, how = load_prices(), {"function_mb": self.function_mb}
        cost = api.load_cost(report, prices, **how, table_rows=self.table_rows, kept=self.keep)
        said = api.format_cost(cost, prices, **how, on_aws=self.on_aws)
        click.echo(f"{report}\n{said}\n{prices.warning(datetime.now(UTC).date())}".strip())
        self.costs[name] = cost

    def exit(self) -> NoReturn:
        """End with exit code 0 only if every row and message is where it should be."""
        reports = self.reports.values()
        if any(report.interrupted for report in reports):
            sys.exit(INTERRUPTED)
        sys.exit(0 if all(r.reconciles and r.succeeded == r.planned for r in reports) else 1)

    def _end(self, database: Database) -> None:
        """Compare and save the reports, then delete the rows."""
        if any(len(report.calls) for report in self.reports.values()):
            mixed = self.reports.get("mixed")
            table = mixed.by_action().round(2) if mixed else api.compare_loads(self.reports)
            click.echo(f"\n{table.to_string()}\n")
        if self.reports:
            path = api.save_reports(self.reports, self.folder, self.costs)
            click.echo(f"Results: {display_path(path)}")
        for run in (report.run for report in self.reports.values()):
            if self.keep:
                click.echo(f"The rows of run {run} are kept: `workshop load clean {run}`")
            else:
                click.echo(f"Deleting the rows of run {run} (again: `workshop load clean {run}`)")
                click.echo(f"{api.delete_rows(database, run):,} deleted, a warm-up's among them")


@contextmanager
def _workshop(settings: Settings) -> Iterator[Workshop]:
    """The open workshop, whose engines end with it; no function takes its processes' place."""
    from workshop_lib import services
    from workshop_lib.workshop import open_workshop

    how: Any = {"load_function": "", "workshop_linger_seconds": 0.0}
    with services.session(settings), closing(open_workshop("load", **how)) as ws:
        yield ws
