"""`workshop load`: load tests from the shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from workshop_lib.errors import DataError
from workshop_lib.load.events import EVENT_TYPES
from workshop_lib.load.interrupts import one_interrupt
from workshop_lib.options import INTERRUPTED, a_file, a_folder
from workshop_lib.paths import HOME, RESULTS

if TYPE_CHECKING:
    from workshop_lib.load.command import Outcome

CONFIG = Path("config.json")
"""The scenario file of an insert load, where the folder in which the command is run has one."""

keep_rows = click.option("--keep", is_flag=True, help="keep the rows of this run in the table")
results_folder = click.option(
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
@click.option("--no-warm-up", is_flag=True, help="the same as --warm-up 0")
@click.option(
    "--function-name", help="run the load by this Lambda function; empty: by local processes"
)
@click.option("--region", help="where that function is  [default: AWS_REGION]")
@click.option("--at-once", type=click.IntRange(1, 1_000),
              help="workers at the same time  [default: 4 processes, 1000 functions]")  # fmt: skip
@keep_rows
@results_folder
def inserts(*, no_warm_up: bool, **options: Any) -> None:
    """Compare individual with multi-row inserts; exit code 1 if a row is missing at the end.

    Each worker does its rounds one after another. A round is --count INSERTs of one row each
    (scenario 1), or one INSERT of --count rows (scenario 2).

    Options win over the scenario file. Ctrl-C ends it with a report of what was done so far; the
    rows are deleted anyway.
    """
    if no_warm_up and options["warm_up"]:
        raise click.UsageError("--no-warm-up and --warm-up exclude each other.")
    if no_warm_up:
        options["warm_up"] = 0
    found = CONFIG if CONFIG.exists() and not options["config"] else None
    options["config"] = options["config"] or found or "inserts_laptop"
    with one_interrupt():
        from workshop_lib.load.command import run_insert_loads

        try:
            _end_load(run_insert_loads(click.echo, **options))
        except DataError as error:
            if found is None or str(found) not in str(error):
                raise
            raise DataError(
                f"{error} It was read because it lies in the current folder. If it is another "
                "program's, --config inserts_laptop takes the workshop's own instead."
            ) from None


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
@click.option("--by-function/--no-by-function", default=None,
              help="the queue of QUEUE_URL is mapped to a Lambda function, which processes it  "
                   "[default: where LOAD_FUNCTION names it]")  # fmt: skip
@click.option("--at-once", type=click.IntRange(1, 64), help="processes here  [default: 4]")
@keep_rows
@results_folder
def mixed(**options: Any) -> None:
    """Send reads and writes through a queue; exit code 1 if a message is unaccounted for.

    They are sent in rounds. A round has --messages messages of each action: SELECT, INSERT and
    SELECT2. A worker runs the statement of its message --statements times.

    Locally the queue is an emulation. Options win over the scenario file. Ctrl-C ends it with a
    report of what was done so far; the rows are deleted anyway.
    """
    with one_interrupt():
        from workshop_lib.load.command import run_mixed_load

        _end_load(run_mixed_load(click.echo, **options))


def _end_load(found: Outcome) -> NoReturn:
    """End with exit code 0 only if every row and message is where it should be."""
    reports = found.reports.values()
    if any(report.interrupted for report in reports):
        sys.exit(INTERRUPTED)
    complete = all(r.reconciles and r.succeeded == r.planned for r in reports)
    sys.exit(0 if complete and found.cleared else 1)


@load.command()
@click.argument("run", required=False)
def clean(run: str | None) -> None:
    """Delete the rows of one load test (RUN: its name or number), or of all.

    From the tables business_events and transactions, whose other rows stay.
    """
    from workshop_lib.load import command

    sys.exit(0 if command.clean(run, click.echo) else 1)


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
    from workshop_lib.lambda_package import HANDLER, build_package

    path = out or HOME / "build" / f"load-worker-{architecture}.zip"
    built = build_package(path, architecture=architecture, python=python)
    click.echo(f"{built} for Python {python} on {architecture}\nHandler: {HANDLER}")
