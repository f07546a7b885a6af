"""The workshop's stacks on AWS: CloudFormation does the work, this adds what it does not say.

`workshop aws deploy`, `aws cloudformation deploy` and the console create the same stack from the
same template. Here: prerequisites, the price, progress, what remains.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import boto3
import click
import psycopg2
import yaml
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, WaiterError
from psycopg2 import sql

from workshop_lib.aws.lambda_package import build_package
from workshop_lib.errors import AwsError, redact
from workshop_lib.paths import CHECKOUT, FILES, IN_CHECKOUT
from workshop_lib.services.endpoints import external_database
from workshop_lib.services.error_help import advice, error_code, error_help
from workshop_lib.settings import load_settings

DEFAULT_STACK = "cache-aside-workshop"
POLL_S = 4.0
DELETE_AGAIN_S = 300.0
DELETE_TRIES = 12
"""Lambda's network interfaces outlive a function by 20 to 60 minutes, and hold its network."""
LIMITS = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard"},
                s3={"us_east_1_regional_endpoint": "regional"})  # fmt: skip
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
LOST = {
    "AWS::DSQL::Cluster": "the database with all its tables",
    "AWS::ElastiCache::ServerlessCache": "the cache",
    "AWS::S3::Bucket": "the bucket with all its objects",
    "AWS::EC2::Instance": "the notebook host with its files",
}
"""What is lost with a resource of the type."""
NO_CHANGE = re.compile("didn't contain changes|No updates are to be performed")
REPLACED = {"True": "REPLACE", "Conditional": "may REPLACE"}
OF_CLUSTER = ("ClusterArn", "ClusterVpcEndpoint", "ClusterVpcEndpointServiceName")
"""Outputs of multi-region.yaml that are parameters of workshop.yaml."""


@contextmanager
def _with_error_help() -> Iterator[None]:
    """Turn what boto3 raises into an `AwsError` that says what to do."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise AwsError(error_help(error)) from None


def _reason_advice(reason: str) -> str:
    """What helps against the reason that CloudFormation gives for a failure."""
    code = re.search(r"Error ?Code: (\w+)", reason)
    answer: Any = {"Error": {"Code": code[1] if code else "", "Message": reason}}
    return advice(ClientError(answer, "Resource"))


class _Loader(yaml.SafeLoader):
    """Reads a template, without functions such as !Ref."""


_Loader.add_multi_constructor("!", lambda *_: None)


@cache
def read_template(name: str) -> dict[str, Any]:
    """The template "workshop" or "multi-region", and its text as "Body"."""
    body = (FILES / "cloudformation" / f"{name}.yaml").read_text(encoding="utf-8")
    return {**_Loader(body).get_single_data(), "Body": body}


class Site:
    """A stack in one Region, whether it exists yet or not.

    Args:
        region: None for the one of boto3's configuration.
        name: of the stack; "…-database" is one side of a database over two Regions.
        given: parameters to set; all others keep their values.

    Attributes:
        status: of the stack, such as CREATE_COMPLETE; empty if there is none.
        stack_id: unlike the name, valid after deletion too.
        made: when it was created.
        parameters, outputs: by name.
        failures: what failed since it began, the first cause first, each with what helps.

    """

    def __init__(self, region: str | None, name: str, given: Mapping[str, str] | None = None):
        self._session: Any = boto3.Session(region_name=region)
        self.region, self.name, self.given = str(self._session.region_name), name, {**(given or {})}
        self.template = read_template("multi-region" if name.endswith("-database") else "workshop")
        self.options = f"--stack {name} --region {self.region}"
        self.cloudformation = self.client("cloudformation")
        self.failures: list[str] = []
        self.refresh()

    def client(self, service: str) -> Any:
        """A client of this Region for a service.

        Raises:
            AwsError: boto3 is configured in a way that it cannot use.

        """
        try:
            return self._session.client(service, config=LIMITS)
        except ValueError as error:  # such as a number that is none; it does not say of what
            raise AwsError(
                f"boto3 cannot use its configuration: {redact(error).rstrip('.')}. Correct what is "
                "wrong, or unset it: an AWS_ variable, such as AWS_ENDPOINT_URL or "
                "AWS_MAX_ATTEMPTS, or a line in ~/.aws/config."
            ) from None

    def refresh(self) -> None:
        """Read the stack's state.

        Raises:
            AwsError: it was created from another template.

        """
        found: Mapping[str, Any] = {"StackStatus": "REVIEW_IN_PROGRESS"}
        try:
            (found,) = self.cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        except ClientError as error:
            if error_code(error) != "ValidationError" or "not exist" not in str(error):
                raise
        # A stack under review exists only for a change set that was not executed.
        self.status = found["StackStatus"].replace("REVIEW_IN_PROGRESS", "")
        self.stack_id: str = found.get("StackId", "")
        self.made: datetime = found.get("CreationTime") or datetime.now(UTC)
        values = found.get("Parameters", ()) if self.status else ()
        self.parameters = {one["ParameterKey"]: one["ParameterValue"] for one in values}
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())}
        said = found.get("Description", "")
        if self.status and said[:40] != self.template["Description"][:40]:
            raise AwsError(
                f"The stack {self.name} in {self.region} was created from another template "
                f"({said[:60]!r}) and is left alone. Choose another name: --stack NAME."
            )

    def _pages(self, operation: str, key: str, **request: Any) -> Iterator[Any]:
        for page in self.cloudformation.get_paginator(operation).paginate(**request):
            yield from page[key]

    def identity(self) -> str:
        """Who is signed in, and where: the account by its alias or its last four digits."""
        caller = self.client("sts").get_caller_identity()
        account = f"…{caller['Account'][-4:]}"
        with suppress(ClientError, BotoCoreError, IndexError):  # not needed to deploy
            account = self.client("iam").list_account_aliases()["AccountAliases"][0]
        return f"✓ account {account}, {self.region}, as {caller['Arn'].rsplit(':', 1)[-1]}"

    def value(self, name: str) -> str:
        """The value of a parameter: the given one, the stack's, or its default."""
        default = self.template["Parameters"].get(name, {}).get("Default", "")
        return str({name: default, **self.parameters, **self.given}[name])

    @property
    def days(self) -> int:
        """Days after which the stack ends what is charged by the hour; 0 for never."""
        return int(self.value("EndsAfterDays") or 0)

    def resources(self) -> dict[str, str]:
        """The type of each resource that exists, by its name in the template."""
        if not self.status:
            return {}
        found = self._pages("list_stack_resources", "StackResourceSummaries", StackName=self.name)
        there = [one for one in found if one["ResourceStatus"] != "DELETE_COMPLETE"]
        return {one["LogicalResourceId"]: one["ResourceType"] for one in there}

    def plan(self) -> bool:
        """Create a change set. Returns whether anything would change.

        Raises:
            AwsError: CloudFormation refuses the change; nothing of it is left behind.

        """
        known = self.template["Parameters"]
        kept = {name: value for name, value in self.parameters.items() if name in known}
        values = (kept | self.given).items()
        made = self.cloudformation.create_change_set(
            StackName=self.name,
            ChangeSetName=f"workshop-{time.time_ns()}",
            ChangeSetType="UPDATE" if self.status else "CREATE",
            TemplateBody=self.template["Body"],
            Capabilities=["CAPABILITY_IAM"],
            Tags=[{"Key": "Project", "Value": DEFAULT_STACK}],
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values],
        )
        self.stack_id = made["StackId"]
        self._change_set = {"ChangeSetName": made["Id"], "StackName": self.stack_id}
        try:
            self.cloudformation.get_waiter("change_set_create_complete").wait(**self._change_set)
        except WaiterError as error:
            self.discard()
            reason = redact(error.last_response.get("StatusReason", error))
            if NO_CHANGE.search(reason):
                return False
            raise AwsError(f"CloudFormation refuses this change of {self.name}: {reason} "
                           f"{_reason_advice(reason)}") from None  # fmt: skip
        return True

    def discard(self) -> None:
        """Delete the change set, and a stack that exists only for it."""
        self.cloudformation.delete_change_set(**self._change_set)
        if not self.status:
            self.cloudformation.delete_stack(StackName=self.stack_id)

    def show(self) -> None:
        """Show the plan, and what the stack would cost."""
        click.echo(f"\nTo {'change' if self.status else 'create'} {self.name} in {self.region}:")
        there = self.resources()
        for change in self._pages("describe_change_set", "Changes", **self._change_set):
            one = change["ResourceChange"]
            name, kind, action = one["LogicalResourceId"], one["ResourceType"], one["Action"]
            there[name] = kind
            if action == "Remove":
                del there[name]
            word = REPLACED.get(one.get("Replacement", ""), action.lower())
            loses = kind in LOST and word not in {"add", "modify"}
            lost = f": with it, {LOST[kind]} is LOST" if loses else ""
            click.echo(f"  {word:<12}{name} ({kind}){lost}")
        click.echo(self.price_text(there))

    def price(self, resources: Iterable[str]) -> tuple[float, float]:
        """USD per hour for these resources in us-east-1: now, and after EndsAfterDays."""
        metadata = self.template["Metadata"]
        tables = [metadata.get(name, {}) for name in ("CostPerHour", "CostAfterEnd")]
        paid = {*resources, self.value("HostType")}
        now, rest = (sum(float(table.get(name, 0)) for name in paid) for table in tables)
        return now, rest

    def price_text(self, resources: Iterable[str]) -> str:
        """What these resources cost, and when it becomes less."""
        now, rest = self.price(resources)
        text = f"  {now:.4f} USD per hour in us-east-1, {now * 730:.0f} per month, before any load"
        if not self.days:
            return text
        end = f"{self.made + timedelta(days=self.days):%Y-%m-%d %H:%M} UTC"
        return f"{text}\n  {rest:.4f} from {end}, without host, cache and endpoints (EndsAfterDays)"

    def start(self, *, delete: bool = False) -> None:
        """Execute the change set, or delete the stack."""
        self._seen = next((event["EventId"] for event in self._events()), "")
        self.failures, self.status = [], "STARTED"
        if delete:
            self.cloudformation.delete_stack(StackName=self.stack_id)
        else:
            self.cloudformation.execute_change_set(**self._change_set)

    def _events(self) -> Iterator[Any]:
        """Newest first."""
        return self._pages("describe_stack_events", "StackEvents", StackName=self.stack_id)

    def show_progress(self) -> None:
        """Print a line for each resource that has finished since the last call."""
        fresh = [*takewhile(lambda event: event["EventId"] != self._seen, self._events())]
        for event in reversed(fresh):
            self._seen, state = event["EventId"], event.get("ResourceStatus", "_IN_PROGRESS")
            if state.endswith("_IN_PROGRESS"):
                continue
            if event["PhysicalResourceId"] == event["StackId"]:
                self.status = state
                continue
            name = f"{event['LogicalResourceId']} ({event['ResourceType']})"
            click.echo(f"  {event['Timestamp']:%H:%M:%S}  {self.region}  {state:<16} {name}")
            reason = redact(event.get("ResourceStatusReason", ""))
            if state.endswith("_FAILED") and "cancelled" not in reason.lower():
                self.failures.append(f"{name}: {reason} {_reason_advice(reason)}")


def _follow(sites: Sequence[Site]) -> bool:
    """Show progress until all have ended. Returns whether all succeeded."""
    click.echo("Ctrl-C ends this command, but not what CloudFormation does; repeated, it goes on.")
    while running := [site for site in sites if site.status == "STARTED"]:
        time.sleep(POLL_S)
        for site in running:
            site.show_progress()
    good = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"}
    failed = [site for site in sites if site.status not in good]
    for site in failed:
        zones = [site.value(name) for name in ("Zone1", "Zone2") if site.value(name)]
        place = " ".join((site.region, *zones))
        click.echo(f"\n{site.name} ({place}) ended as {site.status}:")
        click.echo("\n".join(f"  {failure}" for failure in site.failures[:3]))
    return not failed


def _existing(region: str | None, stack: str) -> Site:
    """The stack.

    Raises:
        AwsError: there is none.

    """
    site = Site(region, stack)
    if not site.status:
        raise AwsError(
            f"There is no stack {stack} in {site.region}. Is it in another Region (--region) or "
            "account? `workshop aws deploy` creates one."
        )
    return site


# --- deploy


@_with_error_help()
def deploy(region: str | None, stack: str, given: Mapping[str, str], *, yes: bool = False,
           dry_run: bool = False, function: bool = True) -> bool:  # fmt: skip
    """Create or change the workshop's stack, after a yes; repeated, it does what is left.

    Args:
        region: None for the configured one.
        stack: its name.
        given: parameters; those left out keep their values.
        yes: do not ask.
        dry_run: only show what would change, and what it costs.
        function: update the load-test function too.

    Returns:
        Whether everything asked for was done.

    Raises:
        AwsError: the request, the account or the Region does not allow it.

    """
    site = Site(region, stack, given)
    click.echo(site.identity())
    site.given = {**_choose(site), **given}
    done = _change([site], yes=yes, dry_run=dry_run)
    return done and (dry_run or _upload(site, function=function))


def _change(sites: Sequence[Site], *, yes: bool, dry_run: bool = False) -> bool:
    """Give stacks their new parameters at the same time, after a yes.

    Returns:
        Whether all of them have these; also where that was not to be done.

    """
    with ExitStack() as unless_agreed:
        unless_agreed.callback(click.echo, "Nothing was changed.")
        planned = []
        for site in sites:
            if site.plan():
                unless_agreed.callback(site.discard)
                planned.append(site)
                site.show()
        if planned and (dry_run or not (yes or click.confirm("Go on?"))):
            return dry_run
        unless_agreed.pop_all()
    if not planned:
        click.echo("Nothing to change.")
        return True
    for site in planned:
        site.start()
    if not _follow(planned):
        click.echo("Correct the cause, and repeat the command. If the stack was new, first run "
                   f"`workshop aws destroy {planned[0].options}`.")  # fmt: skip
        return False
    for site in sites:
        site.refresh()
    return True


def _choose(site: Site) -> dict[str, str]:
    """Check what first stacks fail for. Returns the parameters that are chosen once and kept.

    Raises:
        AwsError: no two zones will do, or the database over two Regions is not linked yet.

    """
    with suppress(ClientError):  # not needed to deploy
        limits = site.client("lambda").get_account_settings()["AccountLimit"]
        click.echo(f"✓ {limits['ConcurrentExecutions']} Lambda functions at once in this account, "
                   "for the queue (QueueConcurrency) and load tests (--at-once)")  # fmt: skip
    host, chosen = site.value("HostType"), dict[str, str]()
    if host.endswith((".medium", "t4g.large")):
        click.echo(f"! An account on the free plan cannot start {host}, but it can t4g.small.")
    if not site.status:
        sides = _sides(site.region, f"{site.name}-database")
        if {side.outputs.get("Phase") for side in sides if side.status} - {"linked"}:
            raise AwsError(f"{sides[0].name} is half done: `workshop aws link` finishes it.")
        chosen |= {name: sides[0].outputs[name] for name in OF_CLUSTER if sides[0].status}
        if not site.given.keys() & {"VpcId", "Zone1", "Zone2"}:
            chosen |= _choose_zones(site, host)
    # A standing host keeps its image; a new host, or one with another processor, needs a new one.
    stood, arm = site.parameters.get("HostType", "none"), host.startswith("t4g")
    if host != "none" and (stood == "none" or stood.startswith("t4g") != arm):
        image = IMAGE.format("arm64" if arm else "x86_64")
        chosen["HostImage"] = site.client("ssm").get_parameter(Name=image)["Parameter"]["Value"]
    return chosen


def _choose_zones(site: Site, host: str) -> dict[str, str]:
    """Two zones that offer the endpoints of database and cache, and the host's instance type."""
    ec2, offers = site.client("ec2"), dict[str, set[str]]()
    pages = ec2.get_paginator("describe_vpc_endpoint_services").paginate()
    for one in pages.search("ServiceDetails[]"):
        if re.search(r"\.(dsql-|elasticache|monitoring$)", one["ServiceName"]):
            offers[one["ServiceName"]] = set(one["AvailabilityZones"])
    if host != "none":
        wanted = {"Filters": [{"Name": "instance-type", "Values": [host]}]}
        found = ec2.describe_instance_type_offerings(LocationType="availability-zone", **wanted)
        offers[host] = {one["Location"] for one in found["InstanceTypeOfferings"]}
    zones = sorted(set.intersection(*offers.values()))[:2]
    if len(zones) < 2:
        listed = "; ".join(f"{name} in {', '.join(sorted(z))}" for name, z in offers.items())
        raise AwsError(f"No two zones of {site.region} offer everything: {listed}. Choose another "
                       "Region or HostType, or set -p Zone1=… -p Zone2=….")  # fmt: skip
    click.echo(f"✓ zones {' and '.join(zones)}")
    return dict(zip(("Zone1", "Zone2"), zones, strict=True))


def _upload(site: Site, *, function: bool) -> bool:
    """Upload the workshop for the host, and the function's code. Returns whether all succeeded."""
    s3, bucket = site.client("s3"), site.outputs["BucketName"]
    if packed := _committed():
        s3.put_object(Bucket=bucket, Key="setup/workshop.tar.gz", Body=packed)
        click.echo("✓ the last commit is in the bucket, for the host's `get-workshop`")
    else:
        click.echo("! There is no git clone here to upload: see docs/on-aws.md, section 3.")
    if function:
        with tempfile.TemporaryDirectory() as folder:
            architecture, python = map(site.value, ("Architecture", "PythonVersion"))
            worker = Path(folder, "worker.zip")
            build_package(worker, architecture=architecture, python=python)
            digest = hashlib.sha256(worker.read_bytes()).hexdigest()[:16]
            key = f"setup/load-worker-{digest}.zip"  # a stack looks at the key, not into the zip
            s3.upload_file(str(worker), bucket, key)
        site.given["CodeKey"] = key
        if not _change([site], yes=True):
            return False
    way_in = site.outputs.get("HostSession", "workshop aws grant")
    click.echo(f"It costs money until `workshop aws destroy {site.options}`. The way in "
               f"(docs/on-aws.md):\n  {way_in}")  # fmt: skip
    return True


def _committed() -> bytes:
    """The clone as git has it, as a tar.gz; empty without a clone or without git."""
    if not IN_CHECKOUT:  # an installed package may lie in a repository of the learner's
        return b""
    git = ["git", "archive", "--format=tar.gz", "HEAD"]
    try:
        return subprocess.run(git, cwd=CHECKOUT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


@_with_error_help()
def grant(region: str | None, stack: str) -> None:
    """Create the database user of host and function, as admin; repeated, it changes nothing.

    Raises:
        AwsError: there is no such stack, or the database does not answer or refuses.

    """
    site = _existing(region, stack)
    user, inside = site.outputs["IamUserName"], "WORKSHOP_STACK" in os.environ  # as on the host
    host = site.outputs["DSQLClusterEndpoint" if inside else "DSQLClusterPublicEndpoint"]
    given: Any = {"workshop_stack": stack, "aws_region": site.region, "dsql_endpoint": host}
    endpoint: Any = external_database(load_settings(**given, iam_username="admin").values)
    roles = {arn for name, arn in site.outputs.items() if name.endswith("RoleArn")}
    try:
        if user != "admin":
            with closing(psycopg2.connect(**endpoint.arguments, password=endpoint.token())) as one:
                one.autocommit = True
                _grant(one.cursor(), user, site.outputs["DatabaseName"], roles)
    except psycopg2.Error as error:
        raise AwsError(
            f"The database user was not set up: {error_help(error, endpoint)} "
            "docs/aws-architecture.md has the statements; -p IamUserName=admin does without it."
        ) from None
    click.echo(f"✓ Host and function sign in to the database as {user}.")


def _grant(cursor: Any, user: str, database: str, roles: set[str]) -> None:
    name = sql.Identifier(user)
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [user])
    if not cursor.fetchall():
        cursor.execute(sql.SQL("CREATE ROLE {} WITH LOGIN").format(name))
    may_create = sql.SQL("GRANT CREATE ON DATABASE {} TO {}")
    cursor.execute(may_create.format(sql.Identifier(database), name))
    cursor.execute("SELECT arn FROM sys.iam_pg_role_mappings WHERE pg_role_name = %s", [user])
    for arn in sorted(roles - {arn for (arn,) in cursor.fetchall()}):
        cursor.execute(sql.SQL("AWS IAM GRANT {} TO {}").format(name, sql.Literal(arn)))


# --- status, destroy


@_with_error_help()
def status(region: str | None, stack: str) -> None:
    """Show the stack's state, age, cost so far, outputs and price; no account numbers.

    Raises:
        AwsError: there is none, or it is not the workshop's.

    """
    site = _existing(region, stack)
    resources = site.resources()
    hours = (datetime.now(UTC) - site.made).total_seconds() / 3600
    (now, rest), until = site.price(resources), min(hours, 24 * site.days or hours)
    facts = {
        "status": site.status,
        "age in hours": f"{hours:.1f}",
        "USD so far": f"{now * until + rest * (hours - until):.2f}",
        **{name: redact(value) for name, value in sorted(site.outputs.items())},
    }
    click.echo(f"{stack} in {site.region}")
    for name, value in facts.items():
        click.echo(f"  {name:<26} {value}")
    click.echo(site.price_text(resources))


@_with_error_help()
def destroy(region: str | None, stack: str, *, yes: bool = False, linked: bool = False) -> bool:
    """Delete a stack, after a yes, and say what remains.

    Args:
        region: None for the configured one.
        stack: its name. Both sides of a database over two Regions go together.
        yes: do not ask.
        linked: the workshop in both Regions and then its database, which `link` made.

    Returns:
        Whether everything to be deleted is gone, also where there was nothing.

    Raises:
        AwsError: it is not ours, or protected.

    """
    here = Site(region, stack)
    click.echo(here.identity())
    rounds = [_sides(here.region, stack) if stack.endswith("-database") else [here]]
    if linked:
        sides = _sides(here.region, f"{stack}-database")
        rounds = [[Site(side.region, stack) for side in sides], sides]
    rounds = [[site for site in sites if site.status] for sites in rounds]
    for site in (site for sites in rounds for site in sites):
        if site.parameters.get("DeletionProtection") == "true":
            raise AwsError(f"The database of {site.name} in {site.region} is protected. First "
                           "deploy (or link) with -p DeletionProtection=false.")  # fmt: skip
        lost = ", ".join(LOST[kind] for kind in site.resources().values() if kind in LOST)
        click.echo(f"This deletes {site.name} in {site.region} for good, and with it {lost}.")
    if not any(rounds):
        click.echo(f"There is no stack {stack} in {here.region}; nothing to delete.")
    elif not yes:
        click.confirm("Go on?", abort=True)
    return all(_delete(sites) for sites in rounds)


def _delete(stacks: Sequence[Site]) -> bool:
    """Delete stacks at the same time, again while Lambda holds a network, and say what remains."""
    left = stacks
    for attempt in range(DELETE_TRIES):
        if attempt:
            click.echo(f"Trying again in {DELETE_AGAIN_S / 60:.0f} minutes. You can also press "
                       "Ctrl-C, and repeat the command later.")  # fmt: skip
            time.sleep(DELETE_AGAIN_S)
        for site in left:
            site.start(delete=True)
        _follow(left)
        left = [site for site in left if site.status != "DELETE_COMPLETE"]
        reasons = " ".join(failure for site in left for failure in site.failures)
        if not re.search("(?i)interface|dependen", reasons):
            break
    for site in stacks:
        gone = ("is deleted. What remains: metrics for 15 months, at no charge, and a snapshot of "
                "the cache if CacheFinalSnapshot names one")  # fmt: skip
        again = f"is NOT deleted, and may cost: repeat `workshop aws destroy {site.options}`"
        click.echo(f"{site.name} in {site.region} {again if site in left else gone}")
    return not left


# --- two Regions


def _sides(region: str | None, name: str) -> list[Site]:
    """Both sides of a database over two Regions; each names the other's Region."""
    here = Site(region, name)
    return [here, Site(here.parameters["PeerRegion"], name)] if here.status else [here]


@_with_error_help()
def link(regions: Sequence[str], witness: str, stack: str, given: Mapping[str, str], *,
         yes: bool = False) -> bool:  # fmt: skip
    """Create one database over two Regions, after a yes; repeated, it continues where it was.

    Both sides are created without a peer first. Then both are told of each other at the same time,
    since either may have to wait for the other (Aurora DSQL User Guide, "Configuring Aurora DSQL
    clusters using AWS CloudFormation"). `destroy` undoes it from either side, however far it got.

    Args:
        regions: the two.
        witness: the third Region.
        stack: the workshop's stack; the database's stacks are called NAME-database.
        given: parameters of multi-region.yaml for both.
        yes: do not ask.

    Returns:
        Whether they are linked.

    Raises:
        AwsError: the Regions do not go together, or a side belongs to another pair.

    """
    if len(regions) != 2 or len({*regions, witness}) != 3:
        raise AwsError(
            "It takes three Regions, such as --regions us-east-1,us-east-2 --witness us-west-2."
        )
    sides = [Site(one, f"{stack}-database", given) for one in regions]
    click.echo(sides[0].identity())
    for side, region in zip(sides, reversed(regions), strict=True):
        wanted = {"WitnessRegion": witness, "PeerRegion": region}
        has = {name: side.parameters.get(name, value) for name, value in wanted.items()}
        if has != wanted:
            listed = ", ".join(f"{name}={value}" for name, value in has.items())
            raise AwsError(f"{side.name} in {side.region} has {listed}. Name those Regions, or "
                           "choose another --stack.")  # fmt: skip
        side.given |= wanted
    click.echo(f"One database over {' and '.join(regions)}, witness {witness}. It costs nothing "
               "per hour; writes are charged in both Regions, storage in each.")  # fmt: skip
    if not yes:
        click.confirm("Go on?", abort=True)
    if not _change(sides, yes=True):
        return False
    own, peer = (side.outputs["DSQLClusterArn"] for side in sides)
    for side, arn, other in ((sides[0], own, peer), (sides[1], peer, own)):
        side.given |= {"ClusterArn": arn, "PeerClusterArn": other}
    return _change(sides, yes=True)
