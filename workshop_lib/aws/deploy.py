"""`workshop aws deploy`: from a template to a stack with its function, its objects and its host."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from workshop_lib.aws import DEFAULT_NAME, change_sets, code, host_files
from workshop_lib.aws.clients import Clients
from workshop_lib.aws.console import Console
from workshop_lib.aws.following import Watch, follow
from workshop_lib.aws.prerequisites import (
    check_services,
    check_template,
    enter,
    find_prefix_list,
    look_at_stack,
    sign_in,
    step,
)
from workshop_lib.aws.pricing import per_hour, price_lines
from workshop_lib.aws.stacks import Stack, check_name, find_stack, place_of
from workshop_lib.aws.template import Template, parse_given, read_template
from workshop_lib.aws.wheels import download_wheels
from workshop_lib.errors import AwsError, WorkshopError
from workshop_lib.load.package import Package, build_package


class Build(Protocol):
    """Builds the load worker's zip."""

    def __call__(self, out: Path, *, architecture: Any, python: str) -> Package:
        """Write it to `out`."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be deployed.

    Attributes:
        stack: its name.
        region: None for the configured one.
        given: words of the form NAME=VALUE.
        yes: go on without asking.
        function: have the load-test function too.
        host_files: give the notebook host what it installs.
        dry_run: only show what would change.

    """

    stack: str = DEFAULT_NAME
    region: str | None = None
    given: tuple[str, ...] = ()
    yes: bool = False
    function: bool = True
    host_files: bool = True
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Site:
    """Where and with what a stack is being deployed."""

    wish: Wish
    clients: Clients
    template: Template
    given: Mapping[str, str]
    before: Stack | None
    worker: Path | None

    @property
    def exists(self) -> bool:
        return self.before is not None and not self.before.planned

    @property
    def place(self) -> str:
        """How a command says which stack it means."""
        return place_of(self.wish.stack, self.clients.region)

    def values(self) -> dict[str, str]:
        """All parameters, as they will be in the end."""
        before = self.before.parameters if self.before and self.exists else {}
        worker = {"CodeKey": code.worker_key(self.worker)} if self.worker else {}
        return {**self.template.defaults(), **before, **self.given, **worker}


def deploy(
    wish: Wish,
    console: Console,
    *,
    build: Build = build_package,
    download: host_files.Download = download_wheels,
) -> bool:
    """Check, show, ask, and make or change the stack; doing it again changes nothing.

    Args:
        wish: what is wanted.
        console: whom to tell and ask.
        build: makes the load worker's zip.
        download: fetches the wheels for the notebook host.

    Returns:
        Whether the stack is now as it was wanted; True also where only a look was wanted.

    Raises:
        AwsError: something about the request, the account or the Region does not allow it.
        KeyboardInterrupt: passed on, after it was said what AWS does meanwhile.

    """
    template = read_template("workshop")
    check_name(wish.stack)
    given = parse_given(wish.given, template)
    if given.get("Namespace") == code.SETUP.rstrip("/"):
        raise AwsError("The namespace 'setup' is where the bucket keeps code. Choose another one.")
    clients = sign_in(console, wish.region)
    return _deploy_here(_Site(wish, clients, template, given, None, None), console, build, download)


def deploy_in(region: str, wish: Wish, console: Console, **given: str) -> bool:
    """Deploy in a certain Region, with parameters of the program's besides those of the wish.

    Raises:
        AwsError: as `deploy`.

    """
    template = read_template("workshop")
    parameters = {**parse_given(wish.given, template), **given}
    site = _Site(wish, enter(console, region), template, parameters, None, None)
    return _deploy_here(site, console, build_package, download_wheels)


def _deploy_here(
    site: _Site, console: Console, build: Build, download: host_files.Download
) -> bool:
    clients, template = site.clients, site.template
    check_services(console, clients)
    check_template(console, clients, template)
    site = replace(site, before=look_at_stack(console, clients, site.wish.stack, template))
    if "S3PrefixListId" not in site.given and not site.exists:
        found = find_prefix_list(console, clients)
        site = replace(site, given={**site.given, "S3PrefixListId": found})
    with tempfile.TemporaryDirectory() as folder:
        if site.wish.function and "CodeKey" not in site.given:
            worker = _build(site, console, build, Path(folder) / "worker.zip")
            site = replace(site, worker=worker)
        return _change_and_fill(site, console, download)


def _build(site: _Site, console: Console, build: Build, out: Path) -> Path:
    values = site.values()
    processor = values["Architecture"]

    def make() -> tuple[Path, str]:
        try:
            package = build(out, architecture=processor, python=values["PythonVersion"])
        except WorkshopError as error:
            raise AwsError(f"{error} --no-function deploys without the function.") from None
        size = f"{package.zipped / 2**20:.1f} MB"
        return out, f"{size} for Python {package.python} on {package.architecture}"

    return step(console, "Load worker", make)


def _change_and_fill(site: _Site, console: Console, download: host_files.Download) -> bool:
    started = console.clock()
    if not _first_change(site, console):
        return site.wish.dry_run
    stack = _now(site)
    if site.worker and stack.parameters.get("CodeKey") != site.values()["CodeKey"]:
        console.say("The function:")
        _put_worker(site, stack, console)
        key = {"CodeKey": site.values()["CodeKey"]}
        change_set = change_sets.prepare(
            site.clients.stacks, stack.name, site.template, key, before=stack, console=console
        )
        if change_set and not _carry_out(site, change_set, console):
            return False
        stack = _now(site)
    complaints = _fill(site, stack, console, download)
    minutes, seconds = divmod(int(console.clock() - started), 60)
    console.say(f"\nDone in {minutes} min {seconds} s.")
    for complaint in complaints:
        console.say(f"WARNING: {complaint}")
    for line in _next_steps(site, stack):
        console.say(line)
    return True


def _first_change(site: _Site, console: Console) -> bool:
    """Bring the stack to what is wanted, after a yes; a new one without its function yet.

    Returns:
        Whether to go on with what follows.

    """
    # A new stack's function comes in a second step, as its code lies in the stack's own bucket.
    given = dict(site.given)
    if site.worker and site.exists:
        given["CodeKey"] = site.values()["CodeKey"]
    client = site.clients.stacks
    change_set = change_sets.prepare(
        client, site.wish.stack, site.template, given, before=site.before, console=console
    )
    if change_set is None:
        console.say("Nothing to change.")
        return not site.wish.dry_run
    try:
        go_on = _show_and_ask(site, change_set, console)
    except BaseException:
        change_sets.discard(client, change_set, was_planned=site.before is not None)
        raise
    if not go_on:
        change_sets.discard(client, change_set, was_planned=site.before is not None)
        console.say("Nothing was changed.")
        return False
    if site.before and site.exists:
        _put_worker(site, site.before, console)
    return _carry_out(site, change_set, console)


def _show_and_ask(site: _Site, change_set: change_sets.ChangeSet, console: Console) -> bool:
    what = "Making" if change_set.makes else "Changing"
    console.say(f"\n{what} {site.wish.stack} in {site.clients.region}:")
    for line in change_sets.change_lines(change_set):
        console.say(line)
    if not change_set.changes:
        console.say("  nothing but parameters or outputs")
    console.say("")
    for line in price_lines(site.template, site.values(), site.clients.region):
        console.say(line)
    if site.exists and site.before:
        now = {**site.template.defaults(), **site.before.parameters}
        console.say(f"Now it costs {per_hour(site.template, now):.4f} USD an hour.")
    console.say("")
    for line in _announce(site):
        console.say(line)
    if site.wish.dry_run:
        return False
    return console.confirm(yes=site.wish.yes)


def _announce(site: _Site) -> list[str]:
    """What follows without another question."""
    then = []
    if site.worker and not site.exists:
        then.append("the load worker's code into the bucket, and a second change: its function")
    then.append("the workshop's objects into the bucket, unless they are there")
    if _fills_host(site, site.values()):
        then.append("the workshop and its packages into the bucket, for the notebook host")
    return ["Then, without another question:", *(f"  {one}" for one in then)]


def _carry_out(site: _Site, change_set: change_sets.ChangeSet, console: Console) -> bool:
    """Carry a change set out, showing what happens. Returns whether it went well."""
    client = site.clients.stacks
    watch = Watch(client, change_set.stack_id)
    watch.skip_past()
    change_sets.carry_out(client, change_set)
    try:
        ok = follow([watch], console)
    except KeyboardInterrupt:
        console.say(
            "\nAWS goes on by itself. How far it is: "
            f"`workshop aws status {site.place}`. When it is done, `workshop aws deploy "
            f"{site.place}` does what is left."
        )
        raise
    if not ok:
        for line in failure_lines(watch, site.place):
            console.say(line)
    return ok


def failure_lines(watch: Watch, place: str) -> list[str]:
    """What failed, in what state that left the stack, and what to do."""
    lines = [f"\nIt ended as {watch.status}."]
    if watch.failures:
        lines.append("What failed first:")
        # One cause is enough; what failed much later did so while all was taken back.
        lines += [line for failure in watch.failures[:3] for line in failure.lines()]
    if watch.status in {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"}:
        lines.append(
            "Nothing usable is there. Put right what failed, delete the rest "
            f"(`workshop aws destroy {place}`), and deploy again."
        )
    elif watch.status == "UPDATE_ROLLBACK_COMPLETE":
        lines.append("The stack is as it was before. Put right what failed, and deploy again.")
    else:
        lines.append(f"`workshop aws status {place}` shows the stack.")
    return lines


def _put_worker(site: _Site, stack: Stack, console: Console) -> None:
    if site.worker is None:
        return
    key = site.values()["CodeKey"]
    new = code.put_worker(site.clients.s3, _code_bucket(site, stack), key, site.worker)
    console.say(f"  {key} {'uploaded' if new else 'is there already'}")


def _code_bucket(site: _Site, stack: Stack) -> str:
    return site.values()["CodeBucket"] or stack.outputs["BucketName"]


def _fill(site: _Site, stack: Stack, console: Console, download: host_files.Download) -> list[str]:
    """Put into the bucket what belongs there. Returns what could not be had."""
    s3, bucket = site.clients.s3, stack.outputs["BucketName"]
    console.say("The bucket:")
    values = {**site.template.defaults(), **stack.parameters}
    console.say(f"  {code.put_objects(s3, bucket, values['Namespace'])}")
    if site.worker:
        code.drop_old_workers(s3, _code_bucket(site, stack), site.values()["CodeKey"])
    if not _fills_host(site, values):
        return []
    new = host_files.put_workshop(s3, bucket, host_files.pack_workshop())
    without = ", without what git has not committed" if host_files.uncommitted() else ""
    console.say(f"  the workshop for the host {'uploaded' if new else 'is there already'}{without}")
    try:
        count = host_files.put_wheels(
            s3, bucket, values["Architecture"], values["PythonVersion"], download
        )
    except AwsError as error:
        complaint = (
            "The notebook host cannot install the workshop yet, because its packages are not in "
            f"the bucket. {error} Everything else is ready. Run `workshop aws deploy {site.place}` "
            "where they can be had; or give the host a way to the internet with -p NatGateway=yes."
        )
        return [complaint]
    console.say(f"  {count} packages uploaded" if count else "  its packages are there already")
    return []


def _fills_host(site: _Site, values: Mapping[str, str]) -> bool:
    """Whether there is a host that can have its packages from nowhere else."""
    return (
        site.wish.host_files and values["NotebookHost"] == "yes" and values["NatGateway"] != "yes"
    )


def _now(site: _Site) -> Stack:
    stack = find_stack(site.clients.stacks, site.wish.stack)
    if stack is None:
        raise AwsError(f"The stack {site.wish.stack} is gone. Was it deleted meanwhile?")
    return stack


def _next_steps(site: _Site, stack: Stack) -> list[str]:
    """How to go on from here, and how to end it."""
    region = site.clients.region
    values = {**site.template.defaults(), **stack.parameters}
    lines = [
        "",
        "From inside its network (the notebook host, or CloudShell there), notebooks find it by",
        f"  export WORKSHOP_STACK={stack.name} AWS_REGION={region}",
    ]
    if host := stack.outputs.get("NotebookHostId"):
        get = (
            "git clone the workshop, then make lab"
            if values["NatGateway"] == "yes"
            else "get-workshop && cd workshop && .venv/bin/workshop lab"
        )
        session = f"aws ssm start-session --region {region} --target {host}"
        lines += [
            "On the host (it needs a few minutes after it was made):",
            f"  {session}",
            f"  sudo -iu ec2-user     # there, then: {get}",
            "and from another terminal, its JupyterLab at http://127.0.0.1:8888:",
            f"  {session} \\",
            "      --document-name AWS-StartPortForwardingSession \\",
            "      --parameters portNumber=8888,localPortNumber=8888",
        ]
    return [
        *lines,
        f"It costs about {per_hour(site.template, values):.2f} USD an hour, used or not, until:",
        f"  workshop aws destroy {site.place}",
    ]
