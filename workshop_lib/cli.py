"""The `workshop` command: thin, each command calls one module, and imports what it needs itself."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from workshop_lib import services  # its modules, each on first use
from workshop_lib.advise.command import advise
from workshop_lib.aws.command import aws
from workshop_lib.errors import WorkshopError
from workshop_lib.load.cli import load
from workshop_lib.options import INTERRUPTED, a_folder, as_json, yes
from workshop_lib.paths import FILES, HOME, NOTEBOOKS, PACKAGE, RESULTS, display_path

if TYPE_CHECKING:
    from workshop_lib.settings import Settings


PRINTED_S = 3600
"""How long a token that is printed opens connections, seconds."""
PLACE = ("host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert")
"""Of what libpq is told about the local Aurora DSQL, what is printed."""


class _Commands(click.Group):
    """Turns the workshop's own errors, and Ctrl-C, into one clear message and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except WorkshopError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise click.ClickException(f"{error.strerror}. Free the disk first.") from None
        except RecursionError:
            raise click.ClickException(
                "A file that this command reads is nested too deeply: see what you gave it, the "
                "settings file, and results/."
            ) from None
        except KeyboardInterrupt:
            with suppress(OSError):  # the terminal may be closed
                click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cache-aside-workshop", prog_name="workshop")
def main() -> None:
    """How a cache in front of a database really behaves: run, check and control the workshop."""
    # A plain `kill` or a closed terminal should clean up like Ctrl-C does; under nohup, the latter
    # is ignored, and stays so.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


for imported in (load, aws, advise):
    main.add_command(imported)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--size", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
              help="how much work each notebook does")  # fmt: skip
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE",
              help="a parameter of the notebooks; may be repeated")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 16),
              help="notebooks at a time; more than one disturbs the figures  "
                   "[default: 1; at quick size on local engines 2]")  # fmt: skip
@click.option("--out", type=a_folder,
              help="folder for the results  [default: a new one below results/]")  # fmt: skip
def run(**request: Any) -> None:
    """Run notebooks headless.

    NAMES are numbers or names, such as 02, more/06 or 02_cache_a_query; without any, all run.
    """
    from workshop_lib import runner
    from workshop_lib.interrupts import one_interrupt

    _lay_out()
    with one_interrupt():
        results, page = runner.run(say=click.echo, **request)
    failed = sum(not result.ok for result in results)
    click.echo(f"{len(results) - failed} of {len(results)} passed. Report: {display_path(page)}")
    sys.exit(1 if failed else 0)


@main.command()
@as_json
def check(as_json: bool) -> None:
    """Check Python, settings and every service.

    Exit code 1 if a check fails.
    """
    sys.exit(0 if _check(as_json=as_json) else 1)


@main.command()
@click.option("--region", "aws_region", help="the AWS Region of all services")
@click.option("--stack", "workshop_stack",
              help="the workshop's CloudFormation stack, instead of services")  # fmt: skip
@click.option("--dsql-endpoint", help="the Aurora DSQL cluster: <id>.dsql.<region>.on.aws")
@click.option("--valkey-endpoint",
              help="the ElastiCache: <name>.serverless.<region>.cache.amazonaws.com")  # fmt: skip
@click.option("--bucket", "bucket_name", help="the S3 bucket")
@click.option("--queue-url", help="the SQS queue for load tests; optional")
@click.option("--local", is_flag=True, help="go back to the local engines")
@click.option("--no-check", is_flag=True, help="do not check the services afterwards")
def setup(*, local: bool, no_check: bool, **options: str | None) -> None:
    """Save where your services on AWS are, in workshop.toml.

    In a terminal it asks for what you do not give. Each value is checked at once, and the services
    at the end: exit code 1 if a check fails.
    """
    from workshop_lib import first_use

    given = {name: value for name, value in options.items() if value is not None}
    if local and given:
        raise click.UsageError("--local takes no other values.")
    ask = sys.stdin.isatty() and sys.stdout.isatty()
    first_use.save_services({} if local else first_use.ask_for_services(given, ask=ask))
    well = no_check or _check()
    lab = "`workshop lab` opens the notebooks, `workshop run` runs them all."
    again = "do what the first ✗ says, then run `workshop check`."
    click.echo(f"Next: {lab if well else again}")
    sys.exit(0 if well else 1)


def _check(*, as_json: bool = False) -> bool:
    """Show the checks as they are answered. Returns whether all passed."""
    from workshop_lib.checks import Check, check_deployment

    def show(one: Check) -> None:
        mark = click.style(one.mark, fg="green" if one.ok else "red")
        click.echo(f"{mark} {one.name:<42} {one.seconds * 1000:6.0f} ms  {one.detail}")
        if one.advice:
            click.echo(f"    what to do: {one.advice}")

    on_check = (lambda _: None) if as_json else show
    report = check_deployment(on_check=on_check, workshop_linger_seconds=0.0)
    services.local.wait_gone(_state_folder())
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    return report.ok


@main.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
def compare(first: str, second: str) -> None:
    """Compare the figures of two runs.

    A RUN is a folder of results, its name below results/, or one result file. Exit code 1 if
    nothing can be compared.
    """
    from workshop_lib.compare import compare_runs

    found = compare_runs(first, second)
    click.echo(found)
    sys.exit(0 if found.pairs else 1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("notebook", required=False)
@click.argument("jupyter_options", nargs=-1, type=click.UNPROCESSED)
def lab(notebook: str | None, jupyter_options: tuple[str, ...]) -> None:
    """Open JupyterLab on the notebooks, with the engines running.

    It opens NOTEBOOK, such as 02, or the map of the course. Other options go to JupyterLab.

    Outside a clone, the notebooks are first copied: into the current folder if it already has
    them, else into `cache-aside-workshop` below it. What you have changed is never overwritten.
    """
    from workshop_lib.notebooks import choose, find_notebooks

    if notebook and notebook.startswith("-"):
        jupyter_options = (notebook, *jupyter_options)
        notebook = None
    _lay_out()
    page = choose([notebook], find_notebooks())[0].path if notebook else NOTEBOOKS / "README.md"
    outside = dict(os.environ)  # for Lab's terminals; local engines' clients do without some of it
    endpoints = services.resolve(_settings())
    click.echo(
        f"Services: {', '.join(e.label for e in endpoints.all)}. Ctrl-C ends JupyterLab; local "
        "engines end after a while without use, or by `workshop stop`."
    )
    endpoints.release()
    options = {
        "ServerApp.root_dir": HOME,
        "LabApp.default_url": f"/lab/tree/{quote(page.relative_to(HOME).as_posix())}",
        "LabApp.app_settings_dir": PACKAGE / "templates" / "lab",
        "ServerApp.answer_yes": True,  # to the question that Ctrl-C brings
        "ServerApp.allow_root": os.geteuid() == 0,
        # Kernels talk by ports that every user of this machine can reach, by default in the clear.
        "MappingKernelManager.transport_encryption": "auto",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    # What Lab's terminals and kernels start is this environment's: `workshop`, python, pip.
    path = os.pathsep.join([str(Path(sys.executable).parent), outside.get("PATH", os.defpath)])
    environment = {**outside, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1"}
    # JupyterLab takes the place of this process: nothing stands between it and who ends it.
    command = [sys.executable, "-m", "jupyterlab", *words, *jupyter_options]
    os.execve(sys.executable, command, environment)  # noqa: S606 -- no shell is wanted


@main.command("list")
def list_notebooks() -> None:
    """List the notebooks, and what you have run and solved in JupyterLab."""
    from workshop_lib import course
    from workshop_lib.exercises import all_exercises
    from workshop_lib.notebooks import find_notebooks

    solved = course.solved()
    # Without copies yet, those of the package: to look is no reason to write.
    for one in find_notebooks(NOTEBOOKS if NOTEBOOKS.exists() else FILES / "notebooks"):
        ids = {task.id for task in all_exercises() if task.id.startswith(f"{one.number}.")}
        done = len(ids & solved)
        note = ["run"] if (RESULTS / "interactive" / f"{one.name}.json").exists() else []
        note += [f"{done} of {len(ids)} exercises solved"] if done else []
        note += ["damaged: `workshop notebook reset` helps"] if one.broken else []
        title, minutes = one.title or one.name, one.minutes or "?"
        click.echo(f"{title:<44} {minutes:>3} min  {', '.join(note)}".rstrip())


@main.group()
def notebook() -> None:
    """Manage your copies of the notebooks."""


@notebook.command("reset")
@click.argument("name")
def reset_notebook(name: str) -> None:
    """Put a notebook back as it was delivered.

    NAME is a number or a name, such as 05. Your version is kept in the same folder.
    """
    from workshop_lib import copies
    from workshop_lib.notebooks import Notebook, choose, find_notebooks

    _lay_out()
    missing = [Notebook(path) for path in copies.missing_notebooks()]
    for chosen in choose([name], [*find_notebooks(), *missing]):
        aside = copies.reset_notebook(chosen.path)
        kept = f"Yours is kept as {display_path(aside)}." if aside else "Nothing was changed in it."
        kept = "It was missing." if chosen in missing else kept
        click.echo(f"{display_path(chosen.path)} is as it was delivered. {kept}")


@main.command()
@click.argument("folder", required=False, type=a_folder)
@click.option("--open", "show", is_flag=True, help="open it in the browser")
def report(folder: Path | None, show: bool) -> None:
    """Write the page of a run, or of what you did in JupyterLab.

    FOLDER is a folder of results; without it, what you did in JupyterLab, else the last run.
    """
    from workshop_lib.report import write_report
    from workshop_lib.results import read_run

    own = RESULTS / "interactive"
    folder = folder or (own if read_run(own) else RESULTS / "latest")
    if not read_run(folder):
        raise WorkshopError(f"No results are in {display_path(folder)}: run a notebook first.")
    page = write_report(folder)
    click.echo(f"The page{' of what you did' * (folder == own)}: {display_path(page)}")
    if show:
        click.launch(str(page))


@main.command()
def status() -> None:
    """Show the local engines and who uses them."""
    found = services.local.status(_state_folder())
    if found.supervisor_pid is None:
        click.echo(f"The local engines are not running (their state: {found.folder}).")
        return
    _show_engines(found.engines)
    users = ", ".join(map(str, found.users)) or "no open workshop; they stop by themselves"
    click.echo(f"used by: {users}")
    for user, engines in found.sandboxes:
        click.echo(f"\nthe sandbox of {user}:")
        _show_engines(engines)
    click.echo(f"state:   {found.folder}")


@main.command()
def stop() -> None:
    """Stop the local engines, even if they are in use.

    Their data stays.
    """
    stopped = services.local.stop(_state_folder())
    click.echo("The local engines are stopped." if stopped else "No local engines were running.")


@main.command()
@yes
@click.option("--local", is_flag=True, help="only the local engines, nothing on your own services")
def reset(yes: bool, local: bool) -> None:
    """Delete what the workshop made.

    The local engines with their data, and its tables, keys and objects on your own services.
    """
    from workshop_lib.namespaces import wipe_namespace

    own, name, folder = "", "", _state_folder()
    try:
        if not local:
            settings = _settings()
            own, name = settings.uses_external, settings.workshop_namespace
    except WorkshopError as error:  # the local engines can be reset all the same
        click.echo(f"{error} Services of your own are left alone.", err=True)
    others = f"schema, keys and objects named {name!r} in {own}; and " if own else ""
    what = f"{others}the local engines and their data in {folder.path}"
    if not yes:
        click.confirm(f"Delete {what}?", abort=True)
    if own:
        gone = wipe_namespace(name)
        click.echo(", ".join(f"{count} {kind}" for kind, count in gone.items()) + " deleted.")
    found = services.local.reset(folder)
    click.echo(
        "Reset. The next run starts afresh." if found or own else "There was nothing to reset."
    )


@main.command()
def env() -> None:
    """Print shell exports for other programs.

    For example: (eval "$(workshop env)"; psql "$DATABASE_URL")
    """
    settings = _settings()
    endpoints = services.resolve(settings)
    found = services.exports(settings, endpoints)
    if endpoints.database.embedded:
        try:
            cluster = _local_cluster(settings)
            found["LOCAL_DSQL_URL"] = services.database_url(cluster, settings, PRINTED_S)
        except WorkshopError as error:
            click.echo(f"LOCAL_DSQL_URL is left out. {error}", err=True)
    endpoints.release()
    for name, value in found.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command()
@click.option(
    "--user", default="admin", show_default=True, help="`admin`, or a role that may log in"
)
@click.option("--seconds", type=click.IntRange(1, 604_800), default=PRINTED_S, show_default=True,
              help="how long the token opens connections")  # fmt: skip
def dsql(user: str, seconds: int) -> None:
    """Show how any client reaches the local Aurora DSQL.

    The output holds a fresh token: anyone who has it can sign in.
    """
    from psycopg2.extensions import make_dsn

    login = _local_cluster(_settings()).login(user, seconds)
    token, place = login["password"], {name: login[name] for name in PLACE}
    for name, value in {**place, "password": token}.items():
        click.echo(f"{name:<12} {value}")
    click.echo(f"\nPGPASSWORD={shlex.quote(token)} \\\n  psql {shlex.quote(make_dsn(**place))}")


@main.command()
@click.argument("what", type=click.Choice(["install", "remove"]))
def rules(what: str) -> None:
    """Install or remove Aurora DSQL's rules in your own PostgreSQL.

    It is the one that DATABASE_URL names.
    """
    import psycopg2

    from workshop_lib.database import Database
    from workshop_lib.dsql import install_rules, remove_rules
    from workshop_lib.services.endpoints import external_database

    # This connection need not keep the rules that it installs.
    endpoint = external_database(_settings(dsql_rules="off"))
    if endpoint is None or endpoint.aws:
        raise WorkshopError(
            "DATABASE_URL is not set. The local engine has the rules, and Aurora DSQL is where "
            "they come from; this command is for a PostgreSQL of your own."
        )
    change = install_rules if what == "install" else remove_rules
    try:
        with closing(Database(endpoint).connect()) as own:
            change(own)
    except psycopg2.errors.InsufficientPrivilege as error:
        raise WorkshopError(
            f"The user of DATABASE_URL may not do that: {str(error).strip()}. "
            "Sign in as that server's superuser."
        ) from None
    click.echo(f"The rules are {'installed' if what == 'install' else 'removed'}.")


def _show_engines(engines: Iterable[services.local.EngineState]) -> None:
    for engine in engines:
        place = f"127.0.0.1:{engine.port}  pid {engine.pid}" if engine.port else engine.message
        kind = "  (emulation)" if engine.emulated else ""
        click.echo(f"{engine.name:<10} {engine.status:<7} {place}{kind}")


def _lay_out() -> None:
    """Outside a clone, have the notebooks in the learner's folder; say what was copied and kept."""
    from workshop_lib.copies import lay_out

    new, kept = lay_out()
    if new:
        click.echo(f"Files copied to {HOME}: {len(new)}.")
    for name in kept:
        newer = "There is a newer one: `workshop notebook reset`."
        click.echo(f"Kept as you changed it: {name}. {newer}", err=True)


def _local_cluster(settings: Settings) -> services.DatabaseEndpoint:
    """Where the local Aurora DSQL is; it runs on for a while, as after a notebook."""
    cluster, release = services.resolve_cluster(settings)
    release()
    return cluster


def _settings(**overrides: str) -> Settings:
    from workshop_lib.settings import load_settings

    return load_settings(**overrides).values


def _state_folder() -> services.state_folder.StateFolder:
    """The state folder, whatever the other settings are: stopping must always work."""
    from workshop_lib.settings import state_dir

    if not NOTEBOOKS.exists():
        click.echo(f"No workshop is in this folder yet; this is about {HOME}.", err=True)
    return services.state_folder.state_folder(state_dir())
