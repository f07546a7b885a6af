"""The `workshop` command: thin, each command calls one room."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from workshop_lib.aws import DEFAULT_NAME
from workshop_lib.errors import WorkshopError, one_line
from workshop_lib.load.events import EVENT_TYPES
from workshop_lib.load.interrupts import one_interrupt
from workshop_lib.settings import CHECKOUT, load_settings, near

if TYPE_CHECKING:
    from workshop_lib.services.embedded import EngineStatus

INTERRUPTED = 128 + signal.SIGINT
LOAD_RESULTS = CHECKOUT / "results" / "load"


class _Commands(click.Group):
    """Turns the workshop's own errors, and Ctrl-C, into one clear message and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sys.exit(f"Error: {error.strerror}. Free the disk, and do it again.")

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except WorkshopError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """How a cache in front of a database really behaves: run, check and control the workshop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may have no ✓ or µ
            stream.reconfigure(errors="replace")
    # A plain `kill` should clean up like Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--size", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
              help="how much each notebook does")  # fmt: skip
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE",
              help="a notebook's parameter; may be repeated")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 16),
              help="notebooks at the same time; more than one disturbs the figures  "
                   "[default: 1; at quick size 2, if there are two processors]")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="folder for the results  [default: a new one below results/]")  # fmt: skip
def run(
    names: tuple[str, ...],
    size: str,
    parameters: tuple[str, ...],
    workers: int | None,
    out: Path | None,
) -> None:
    """Run notebooks headless.

    All of them, or the NAMED ones: 02 or 02_cache_a_query.
    """
    from workshop_lib import report, runner, services

    # Whatever can be wrong with the request is said before anything starts.
    chosen = runner.choose(names, runner.find_notebooks())
    runner.parse_parameters(parameters, chosen)
    settings = load_settings().values
    folder = runner.new_folder(out)
    with one_interrupt(), ExitStack() as stack:

        def start_engines() -> None:
            stack.enter_context(services.session(settings))
            runner.sweep()

        try:
            outcomes, _ = runner.run(
                names,
                size=size,
                parameters=parameters,
                workers=workers,
                out=folder,
                say=click.echo,
                progress=sys.stderr.isatty(),
                prepare=start_engines,
            )
        except KeyboardInterrupt:
            if list(folder.glob("*.json")):
                report.write_report(folder)
            click.echo(f"Interrupted. What had finished is in {near(folder)}.", err=True)
            sys.exit(INTERRUPTED)
        page = report.write_report(folder)
    failed = sum(not outcome.ok for outcome in outcomes)
    latest = runner.RESULTS / "latest" / "index.html"
    shown = latest if latest.resolve() == page.resolve() else page
    click.echo(f"{len(outcomes) - failed} of {len(outcomes)} passed. Report: {near(shown)}")
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
def check(as_json: bool) -> None:
    """Check Python, settings and every service.

    Exit code 1 if a check fails.
    """
    sys.exit(0 if _check(as_json=as_json) else 1)


@main.command()
@click.option("--region", "aws_region", help="the AWS Region of everything")
@click.option("--stack", "workshop_stack",
              help="the workshop's CloudFormation stack, instead of the others")  # fmt: skip
@click.option("--dsql-endpoint", help="the Aurora DSQL cluster: <id>.dsql.<region>.on.aws")
@click.option("--valkey-endpoint",
              help="the ElastiCache: <name>.serverless.<region>.cache.amazonaws.com")  # fmt: skip
@click.option("--bucket", "bucket_name", help="the S3 bucket")
@click.option("--queue-url", help="the SQS queue for load tests; need not be")
@click.option("--local", is_flag=True, help="back to this machine's own engines")
@click.option("--yes", is_flag=True, help="write without asking")
@click.option("--no-check", is_flag=True, help="do not try the services afterwards")
def setup(*, local: bool, yes: bool, no_check: bool, **options: str | None) -> None:
    """Say once where your services on AWS are.

    It is kept in workshop.toml.

    What is not given is asked for, if this is a terminal. Each value is looked at at once, and at
    the end the services are tried: exit code 1 if a check fails.
    """
    from workshop_lib import first_use

    given = {name: value for name, value in options.items() if value is not None}
    if local and given:
        raise click.UsageError("--local takes no other values.")
    someone = sys.stdin.isatty() and sys.stdout.isatty()
    if local:
        plan = first_use.plan_local()
    else:
        plan = first_use.plan_aws(given, _ask if someone else None, click.echo)
    for line in plan.changes or [f"Nothing to change in {near(plan.path)}."]:
        click.echo(line)
    if plan.changes:
        if someone and not yes:
            click.confirm(f"Write this to {near(plan.path)}?", default=True, abort=True)
        plan.save()
        click.echo(f"Written to {near(plan.path)}.")
    for name in plan.overruled:
        click.echo(f"But {name} is set here, and the environment wins: unset {name}", err=True)
    well = no_check or _check()
    click.echo(
        "Next: `workshop lab` opens the notebooks, `workshop run` runs them all."
        if well
        else "Next: do what stands beside the first ✗, then `workshop check`."
    )
    sys.exit(0 if well else 1)


def _ask(text: str, default: str) -> str:
    # The default is shown here, because the URL of a queue has an account number in it.
    shown = f"{text} [{one_line(default)}]" if default else text
    return str(click.prompt(shown, default=default, show_default=False))


def _check(*, as_json: bool = False) -> bool:
    """Show the checks as they are answered. Returns whether all passed."""
    from workshop_lib.checks import Check, check_deployment
    from workshop_lib.services import embedded

    def show(one: Check) -> None:
        colour = {True: "green", False: "red", None: "yellow"}[one.ok]
        mark = click.style(one.mark, fg=colour)
        click.echo(f"{mark} {one.name:<42} {one.seconds * 1000:6.0f} ms  {one.detail}")
        if one.advice:
            click.echo(f"    what to do: {one.advice}")

    report = check_deployment(
        on_check=(lambda _: None) if as_json else show, workshop_linger_seconds=0.0
    )
    embedded.wait_gone(_state_folder())
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    return report.ok


@main.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="draw the ratios into this PNG file")  # fmt: skip
def compare(first: str, second: str, as_json: bool, plot: Path | None) -> None:
    """Show the figures of two runs side by side.

    Exit code 1 if nothing can be compared.

    A RUN is a folder of results, its name below results/, or one result file.
    """
    from workshop_lib.compare import compare_runs

    found = compare_runs(first, second)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        for note in found.notes:
            click.echo(f"differs: {note}")
        if found.pairs:
            click.echo(found.to_frame().to_string(index=False))
        for one in found.refused:
            click.echo(f"not compared: {one.notebook} {one.name}: {one.why}".replace(" : ", ": "))
    if plot and found.pairs:
        from workshop_lib import plots

        plots.save(plots.two_runs(found, "Two runs"), plot)
    sys.exit(0 if found.pairs else 1)


@main.group()
def load() -> None:
    """Put load on the database, and say what it costs.

    Insert storms, and mixed traffic through a queue.
    """


@load.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
              help="a file, or a name in data/scenarios/  [default: inserts_laptop]")  # fmt: skip
@click.option("--scenario", "which", type=click.Choice(["1", "2", "both"]), default="both",
              show_default=True, help="1: individual inserts, 2: multi-row inserts")  # fmt: skip
@click.option("--workers", "--num-lambdas", type=int, help="workers, each with its own connection")
@click.option("--iterations", type=int, help="rounds of each worker")
@click.option("--count", type=int,
              help="INSERTs of a round, one row each (1); rows of its one INSERT (2)")  # fmt: skip
@click.option("--event-type", type=click.Choice(EVENT_TYPES), help="what the rows say")
@click.option("--warm-up", type=int, help="INSERTs before the measurement, not counted in it")
@click.option("--no-warm-up", is_flag=True, help="the same as --warm-up 0")
@click.option("--function-name", help="do it by this Lambda function; empty: by processes here")
@click.option("--region", help="where that function is  [default: AWS_REGION]")
@click.option("--at-once", type=click.IntRange(1, 1_000),
              help="workers at the same time  [default: 4 processes, 1000 functions]")  # fmt: skip
@click.option("--keep", is_flag=True, help="leave the rows of this run in the table")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="folder for the results file  [default: results/load]")  # fmt: skip
def inserts(
    config: Path | None,
    which: Any,
    *,
    no_warm_up: bool,
    function_name: str | None,
    at_once: int | None,
    keep: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Compare individual with multi-row inserts; exit code 1 if a row is missing at the end.

    Each worker does its rounds one after another. A round is some INSERTs of one row each
    (scenario 1), or one INSERT of many rows (scenario 2).

    Options win over the scenario file. Ctrl-C ends it with a report of what was done by then, and
    the rows are deleted all the same.
    """
    if no_warm_up and options["warm_up"]:
        raise click.UsageError("--no-warm-up and --warm-up exclude each other.")
    if no_warm_up:
        options["warm_up"] = 0
    with one_interrupt():
        from workshop_lib.load.command import run_storms
        from workshop_lib.load.scenario import read_scenario

        scenario = read_scenario(config or "inserts_laptop", function_name=function_name, **options)
        reports, cleared = run_storms(
            scenario,
            which,
            at_once=at_once,
            keep=keep,
            out=out or LOAD_RESULTS,
            say=click.echo,
        )
        if any(report.interrupted for report in reports):
            sys.exit(INTERRUPTED)
        complete = all(r.reconciles and r.succeeded == r.planned for r in reports)
        sys.exit(0 if complete and cleared else 1)


@load.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
              help="a file, or a name in data/scenarios/  [default: mixed_laptop]")  # fmt: skip
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
@click.option("--keep", is_flag=True, help="leave the rows of this run in the table")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="folder for the results file  [default: results/load]")  # fmt: skip
def mixed(
    config: Path | None,
    *,
    by_function: bool | None,
    at_once: int | None,
    keep: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Send reads and writes through a queue; exit code 1 if a message is unaccounted for.

    They are sent in rounds. A round is some messages of each action: SELECT, INSERT and SELECT2;
    whoever receives a message runs its statement so many times.

    Locally the queue is an emulation. Options win over the scenario file. Ctrl-C ends it with a
    report of what was done by then, and the rows are deleted all the same.
    """
    with one_interrupt():
        from workshop_lib.load.command import run_queue

        report, cleared = run_queue(
            options,
            config or "mixed_laptop",
            by_function=by_function,
            at_once=at_once,
            keep=keep,
            out=out or LOAD_RESULTS,
            say=click.echo,
        )
        if report.interrupted:
            sys.exit(INTERRUPTED)
        complete = report.reconciles and report.succeeded == report.planned
        sys.exit(0 if complete and cleared else 1)


@load.command()
@click.argument("run", required=False)
def clean(run: str | None) -> None:
    """Delete the rows that a load test left (RUN: its name or number), or those of all.

    From the tables business_events and transactions, whose other rows stay.
    """
    from workshop_lib.load import command

    sys.exit(0 if command.clean(run, click.echo) else 1)


@load.command("package")
@click.option("--architecture", type=click.Choice(["arm64", "x86_64"]), default="arm64",
              show_default=True, help="of the function")  # fmt: skip
@click.option("--python", default="3.12", show_default=True, help="of the function's runtime")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="the zip  [default: build/load-worker-<architecture>.zip]")  # fmt: skip
def package(architecture: Any, python: str, out: Path | None) -> None:
    """Build the load worker as an AWS Lambda package, for the template's runtime if none is named.

    `workshop aws deploy` does this by itself.
    """
    from workshop_lib.load.package import HANDLER, build_package

    path = out or CHECKOUT / "build" / f"load-worker-{architecture}.zip"
    built = build_package(path, architecture=architecture, python=python)
    click.echo(f"{built}\nHandler: {HANDLER}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("jupyter_options", nargs=-1, type=click.UNPROCESSED)
def lab(jupyter_options: tuple[str, ...]) -> None:
    """Open JupyterLab with the engines running.

    Other options go to JupyterLab.
    """
    from workshop_lib import services

    words = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={CHECKOUT / 'notebooks'}"]
    # Kernels talk by ports that every user of this machine can reach, and in the clear by default.
    words.append("--MappingKernelManager.transport_encryption=auto")
    if os.geteuid() == 0:
        words.append("--allow-root")
    # The kernels of this JupyterLab need not keep the engines alive: this command does.
    environment = {
        **os.environ,
        "WORKSHOP_LINGER_SECONDS": "0",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    with services.session(load_settings().values) as endpoints:
        click.echo(f"Services: {', '.join(e.label for e in endpoints.all)}. Ctrl-C ends it all.")
        process = subprocess.Popen([*words, *jupyter_options], env=environment)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # JupyterLab got the same Ctrl-C; a second signal ends it without its question.
            process.terminate()
            code = process.wait()
    sys.exit(0 if code in {0, -signal.SIGTERM} else code)


@main.command()
def status() -> None:
    """Show the local engines and who uses them."""
    from workshop_lib.services import embedded

    found = embedded.status(_state_folder())
    if found.keeper_pid is None:
        click.echo(f"The local engines are not running (their state: {found.folder}).")
    else:
        _show_engines(found)
    for sandbox in found.private:
        click.echo("\nthe sandbox of a notebook:")
        _show_engines(sandbox)


@main.command()
def stop() -> None:
    """Stop the local engines, even if in use.

    Their data stays.
    """
    from workshop_lib.services import embedded

    stopped = embedded.stop(_state_folder())
    click.echo("The local engines are stopped." if stopped else "No local engines were running.")


@main.command()
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--local", is_flag=True, help="the local engines only, nothing of your services")
def reset(yes: bool, local: bool) -> None:
    """Delete what the workshop made.

    The local engines with their data, and its own part of your services.
    """
    from workshop_lib.services import embedded
    from workshop_lib.services.state import state_folder
    from workshop_lib.workshop import wipe_namespace

    settings = load_settings().values
    own = "" if local else settings.uses_external
    folder = state_folder(settings.workshop_state_dir)
    what = f"the local engines and their data in {folder.path}"
    if own:
        what = (
            f"schema, keys and objects named {settings.workshop_namespace!r} in {own}; and {what}"
        )
    if not yes:
        click.confirm(f"Delete {what}?", abort=True)
    if own:
        gone = wipe_namespace(settings.workshop_namespace)
        click.echo(", ".join(f"{count} {kind}" for kind, count in gone.items()) + " deleted.")
    found = embedded.reset(folder)
    click.echo(
        "Reset. The next run starts afresh." if found or own else "There was nothing to reset."
    )


@main.command()
def env() -> None:
    """Print shell exports for the services.

    For example: (eval "$(workshop env)"; psql "$DATABASE_URL")
    """
    from workshop_lib import services

    settings = load_settings().values
    endpoints = services.resolve(settings)
    for name, value in services.exports(settings, endpoints).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command()
@click.argument("what", type=click.Choice(["install", "remove"]))
def rules(what: str) -> None:
    """Install or remove Aurora DSQL's rules.

    In the PostgreSQL that DATABASE_URL names.
    """
    import psycopg2

    from workshop_lib.database import Database
    from workshop_lib.dsql import install_rules, remove_rules
    from workshop_lib.services.resolver import external_database

    # Whoever installs rules need not keep them meanwhile.
    settings = load_settings(dsql_rules="off").values
    endpoint = external_database(settings)
    if endpoint is None or endpoint.aws:
        raise WorkshopError(
            "DATABASE_URL is not set. The local engine has the rules, and Aurora DSQL is where "
            "they come from; this command is for a PostgreSQL of your own."
        )
    database = Database(endpoint, pool_min=1)
    try:
        with database.connection() as connection:
            (install_rules if what == "install" else remove_rules)(connection)
    except psycopg2.errors.InsufficientPrivilege as error:
        raise WorkshopError(
            f"The user of DATABASE_URL may not do that: {str(error).strip()}. "
            "Sign in as that server's superuser."
        ) from None
    finally:
        database.close()
    click.echo(f"The rules are {'installed' if what == 'install' else 'removed'}.")


@main.group()
def aws() -> None:
    """Make, look at and delete the services on AWS.

    By CloudFormation.
    """


_stack = click.option("--stack", default=DEFAULT_NAME, show_default=True, metavar="NAME",
                      help="the CloudFormation stack")  # fmt: skip
_place = click.option("--region", metavar="REGION",
                      help="where  [default: AWS_REGION, or boto3's configuration]")  # fmt: skip
_yes = click.option("--yes", is_flag=True, help="do not ask")
_given = click.option("-p", "given", multiple=True, metavar="NAME=VALUE",
                      help="a parameter of the template; may be repeated. Those left out keep "
                           "their values")  # fmt: skip


@aws.command("deploy")
@_stack
@_place
@_given
@_yes
@click.option("--no-function", is_flag=True, help="leave the load-test function as it is")
@click.option("--no-host-files", is_flag=True,
              help="do not put what the notebook host installs into the bucket")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="only show what would change, and what it costs")
@click.option("--linked", is_flag=True,
              help="in both Regions of the database that `workshop aws link` made")  # fmt: skip
def aws_deploy(*, no_function: bool, no_host_files: bool, linked: bool, **options: Any) -> None:
    """Make or change the workshop's stack, after showing what changes and what it costs.

    Doing it again changes nothing. Ctrl-C ends the command, not what AWS has begun.
    """
    from workshop_lib.aws.deploy import Wish, deploy
    from workshop_lib.aws.link import deploy_linked

    wish = Wish(**options, function=not no_function, host_files=not no_host_files)
    sys.exit(0 if (deploy_linked if linked else deploy)(wish, _console()) else 1)


@aws.command("link")
@click.option("--regions", required=True, metavar="REGION,REGION", help="the two with a side each")
@click.option("--witness", required=True, metavar="REGION",
              help="the third, which keeps a part of the log")  # fmt: skip
@click.option("--stack", default=DEFAULT_NAME, show_default=True, metavar="NAME",
              help="the workshop's stack; the database's is NAME-database")  # fmt: skip
@_given
@_yes
@click.option("--with-workshop", is_flag=True,
              help="then do `workshop aws deploy --linked`")  # fmt: skip
def aws_link(*, regions: str, with_workshop: bool, **options: Any) -> None:
    """Make one database over two Regions; where it was interrupted, it goes on.

    A parameter (-p) is one of cloudformation/multi-region.yaml, for both sides.
    """
    from workshop_lib.aws.deploy import Wish
    from workshop_lib.aws.link import deploy_linked, link

    both = tuple(regions.split(","))
    done = link(both, **options, console=_console())
    if done and with_workshop:
        wish = Wish(stack=options["stack"], region=both[0], yes=options["yes"])
        done = deploy_linked(wish, _console())
    sys.exit(0 if done else 1)


@aws.command("status")
@_stack
@_place
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
def aws_status(stack: str, region: str | None, as_json: bool) -> None:
    """Show the stack: its state, outputs, what it costs, what failed; exit code 1 if none is there.

    Account numbers are not shown.
    """
    from workshop_lib.aws.status import read_status, show_status

    if as_json:
        found, _, _ = read_status(stack, region)
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        show_status(stack, region, _console())


@aws.command("destroy")
@_stack
@_place
@_yes
@click.option("--linked", is_flag=True,
              help="in both Regions, and the database over them")  # fmt: skip
def aws_destroy(stack: str, region: str | None, *, yes: bool, linked: bool) -> None:
    """Delete the stack with all its data, and say what remains."""
    from workshop_lib.aws.destroy import destroy

    done = destroy(stack, region, console=_console(), yes=yes, linked=linked)
    sys.exit(0 if done else 1)


def _console() -> Any:
    """The terminal, and the time."""
    import time

    from workshop_lib.aws.console import Console

    return Console(
        say=click.echo,
        ask=click.confirm,
        interactive=sys.stdin.isatty(),
        sleep=time.sleep,
        clock=time.monotonic,
    )


def _show_engines(found: EngineStatus) -> None:
    for engine in found.engines:
        place = f"127.0.0.1:{engine.port}  pid {engine.pid}" if engine.port else engine.message
        kind = "  (emulation)" if engine.emulated else ""
        click.echo(f"{engine.name:<10} {engine.status:<7} {place}{kind}")
    click.echo(f"used by: {', '.join(found.users) or 'no one; they stop by themselves'}")
    click.echo(f"state:   {found.folder}")


def _state_folder() -> Any:
    """The state folder, even if another setting is not usable: stopping must always work."""
    from workshop_lib.services.state import state_folder

    try:
        return state_folder(load_settings().values.workshop_state_dir)
    except WorkshopError as error:
        click.echo(f"({error})", err=True)
        named = os.environ.get("WORKSHOP_STATE_DIR")
        return state_folder(Path(named) if named else None)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt
