"""The workshop's stacks on AWS: CloudFormation does the work, this adds what people need besides.

Any of `workshop aws deploy`, `aws cloudformation deploy` and the console makes the same stack from
the same template. Here: what has to be right before, what it costs, progress, what remains.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
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

from workshop_lib.errors import AwsError, redact
from workshop_lib.lambda_package import build_package
from workshop_lib.paths import CHECKOUT, FILES
from workshop_lib.services.endpoints import external_database
from workshop_lib.services.error_help import advice, cause_of, error_code, error_help, error_text
from workshop_lib.settings import load_settings

DEFAULT_STACK = "cache-aside-workshop"
POLL_S = 4.0
DELETE_AGAIN_S = 300.0
DELETE_TRIES = 12
"""Lambda's network interfaces outlive a function by 20 to 60 minutes, and hold its network."""
LIMITS = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard"},
                s3={"us_east_1_regional_endpoint": "regional"})  # fmt: skip
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
FREE_PLAN = re.compile(r"t(3|4g)\.(micro|small)|[cm]7i-flex\.large|none")
"""The types of a host that an account on the free plan may start."""
LOST = {
    "AWS::DSQL::Cluster": "the database with all its tables",
    "AWS::ElastiCache::ServerlessCache": "the cache",
    "AWS::S3::Bucket": "the bucket with all its objects",
    "AWS::EC2::Instance": "the notebook host with what was written on it",
}
"""What is gone with a resource of the type."""
NO_CHANGE = re.compile("didn't contain changes|No updates are to be performed")
WORKER_FOR = {"architecture": "Architecture", "python": "PythonVersion"}
NETWORKS = ("10.0.0.0/16", "10.1.0.0/16")
"""Two Regions that are to be connected some day need different addresses."""


@contextmanager
def _plainly() -> Iterator[None]:
    """Turn what boto3 raises into an error for the person who meets it."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise AwsError(f"{error_text(error)} {_advice(error)}") from None


def _advice(error: BaseException) -> str:
    if cause_of(error) == "not allowed":  # the table's advice is for those who work on a stack
        return "You may not do this. Ask the account's administrator for the action that is named."
    return advice(error)


def _reason_advice(reason: str) -> str:
    """What helps against the reason that CloudFormation gives for a failure."""
    code = re.search(r"Error ?Code: (\w+)", reason)
    answer: Any = {"Error": {"Code": code[1] if code else "", "Message": reason}}
    return _advice(ClientError(answer, "Resource"))


class _Loader(yaml.SafeLoader):
    """Reads a template; what functions such as !Ref stand for is not looked at."""


_Loader.add_multi_constructor("!", lambda *_: None)


@cache
def read_template(name: str) -> dict[str, Any]:
    """The template "workshop" or "multi-region", and its text as "Body"."""
    body = (FILES / "cloudformation" / f"{name}.yaml").read_text(encoding="utf-8")
    return {**_Loader(body).get_single_data(), "Body": body}


class Site:
    """A stack of ours in one Region, whether it is there yet or not.

    Args:
        region: where.
        name: of the stack; one that ends on "-database" is a side of a database over two Regions.

    Attributes:
        status: of the stack, such as CREATE_COMPLETE; empty if there is none.
        stack_id: the same for its whole life, also of one that is gone.
        made: when.
        parameters, outputs: by name.
        changes: what CloudFormation would change.
        failures: what failed by itself since it began, the first one first, with what helps.
        kept: resources that the template kept when the stack was deleted.

    """

    def __init__(self, region: str, name: str) -> None:
        self.region, self.name = region, name
        self.template = read_template("multi-region" if name.endswith("-database") else "workshop")
        self.options = f"--stack {name} --region {region}"
        self.client = cache(self._client)
        self.cloudformation = self.client("cloudformation")
        self.changes: list[Mapping[str, Any]] = []
        self.failures: list[str] = []
        self.kept: list[str] = []
        self.look()

    def _client(self, service: Any) -> Any:
        return boto3.Session(region_name=self.region).client(service, config=LIMITS)

    def _pages(self, operation: str, key: str, **request: Any) -> Iterator[Any]:
        for page in self.cloudformation.get_paginator(operation).paginate(**request):
            yield from page[key]

    def who(self) -> str:
        """Who is signed in, and where: the account by its alias or its last four digits."""
        identity = self.client("sts").get_caller_identity()
        try:
            account = self.client("iam").list_account_aliases()["AccountAliases"][0]
        except (ClientError, BotoCoreError, IndexError):  # who may not ask deploys all the same
            account = f"…{identity['Account'][-4:]}"
        return f"✓ account {account}, {self.region}, as {identity['Arn'].rsplit(':', 1)[-1]}"

    def look(self) -> None:
        """Find out how the stack is.

        Raises:
            AwsError: it was not made from the template.

        """
        found: Mapping[str, Any] = {"StackStatus": "", "StackId": "", "CreationTime": None}
        try:
            (found,) = self.cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        except ClientError as error:
            if error_code(error) != "ValidationError" or "not exist" not in str(error):
                raise
        # One under review exists for a change set that nobody carried out.
        self.status = found["StackStatus"].replace("REVIEW_IN_PROGRESS", "")
        self.stack_id, self.made = found["StackId"], found["CreationTime"]
        values = found.get("Parameters", ()) if self.status else ()
        self.parameters = {one["ParameterKey"]: one["ParameterValue"] for one in values}
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())}
        said, ours = found.get("Description", ""), self.template["Description"]
        if self.status and said[:40] != ours[:40]:
            raise AwsError(
                f"The stack {self.name} in {self.region} was made from another template (it says: "
                f"{said[:60]!r}). It is left alone. Choose another name: --stack NAME."
            )

    def resources(self) -> dict[str, str]:
        """The type of each resource of the stack, by its name in the template."""
        found = self._pages("list_stack_resources", "StackResourceSummaries", StackName=self.name)
        there = [one for one in found if one["ResourceStatus"] != "DELETE_COMPLETE"]
        return {one["LogicalResourceId"]: one["ResourceType"] for one in there}

    def value(self, name: str, given: Mapping[str, str]) -> str:
        """A parameter as it is given, or is, or is unless it is given."""
        default = self.template["Parameters"].get(name, {}).get("Default", "")
        return str(given.get(name) or self.parameters.get(name, default))

    def plan(self, given: Mapping[str, str]) -> bool:
        """Have CloudFormation find out what would change. Returns whether anything would.

        Raises:
            AwsError: it does not take it; nothing of it is left behind.

        """
        kept = self.parameters.keys() & self.template["Parameters"].keys() - given.keys()
        new: list[Any] = [{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()]
        old: list[Any] = [{"ParameterKey": k, "UsePreviousValue": True} for k in sorted(kept)]
        try:
            made = self.cloudformation.create_change_set(
                StackName=self.name,
                ChangeSetName=f"workshop-{time.time_ns()}",
                ChangeSetType="UPDATE" if self.status else "CREATE",
                TemplateBody=self.template["Body"],
                Capabilities=["CAPABILITY_IAM"],
                Tags=[{"Key": "Project", "Value": DEFAULT_STACK}],
                Parameters=new + old,
            )
        except ClientError as error:
            if NO_CHANGE.search(str(error)):
                return False
            raise
        self.stack_id = made["StackId"]
        self._change_set = {"ChangeSetName": made["Id"], "StackName": self.stack_id}
        try:
            self.cloudformation.get_waiter("change_set_create_complete").wait(**self._change_set)
            found = self._pages("describe_change_set", "Changes", **self._change_set)
            self.changes = [one["ResourceChange"] for one in found]
            self.parameters = {**self.parameters, **given}
        except WaiterError as error:
            self.discard()
            reason = redact(error.last_response.get("StatusReason", error))
            if NO_CHANGE.search(reason):
                return False
            said = f"CloudFormation cannot change {self.name} like this, and nothing was changed:"
            raise AwsError(f"{said} {reason} {_reason_advice(reason)}") from None
        return True

    def discard(self) -> None:
        """Throw the plan away, and the stack that exists for it only."""
        self.cloudformation.delete_change_set(**self._change_set)
        if not self.status:
            self.cloudformation.delete_stack(StackName=self.stack_id)

    def show(self, given: Mapping[str, str]) -> None:
        """Show the plan, and what the stack would cost."""
        click.echo(f"\nTo {'change' if self.status else 'make'} {self.name} in {self.region}:")
        there = self.resources() if self.status else {}
        for one in self.changes:
            name, kind, word = one["LogicalResourceId"], one["ResourceType"], one["Action"].lower()
            there[name] = kind
            if word == "remove":
                del there[name]
            replaced = {"True": "REPLACE", "Conditional": "may REPLACE"}
            word = replaced.get(one.get("Replacement", ""), word)
            lost = f": with it, {LOST[kind]} is LOST" if kind in LOST else ""
            click.echo(f"  {word:<12}{name} ({kind}){'' if word in {'add', 'modify'} else lost}")
        click.echo(self.price_text(there, given))

    def charges(self, resources: Iterable[str], given: Mapping[str, str]) -> dict[str, float]:
        """What these resources cost, USD an hour in us-east-1, by their names."""
        prices = self.template["Metadata"].get("CostPerHour", {})
        found = {name: float(prices[name]) for name in sorted(resources) if name in prices}
        if "NotebookHost" in found:
            found["NotebookHost"] += float(prices.get(self.value("HostType", given), 0))
        return found

    def price_text(self, resources: Iterable[str], given: Mapping[str, str]) -> str:
        """What these resources cost, and when that ends."""
        charges = self.charges(resources, given)
        lines = [f"  {usd:.4f}  {name}" for name, usd in charges.items()]
        total = sum(charges.values())
        month = f"{total * 730:.0f} a month"
        lines += [f"  {total:.4f}  USD an hour in us-east-1, {month}, before any load"]
        if days := int(self.value("EndsAfterDays", given) or 0):
            end = (self.made if self.status else datetime.now(UTC)) + timedelta(days=days)
            when = f"{end:%Y-%m-%d %H:%M} UTC (EndsAfterDays={days})"
            lines += [f"  On {when} it stops the host, and deletes cache and endpoints."]
        return "\n".join(lines)

    def begin(self, *, delete: bool = False) -> None:
        """Have CloudFormation carry out the plan, or delete the stack."""
        self._seen = next((event["EventId"] for event in self._events()), "")
        self.failures, self.kept, self.status = [], [], "BEGUN"
        if delete:
            self.cloudformation.delete_stack(StackName=self.stack_id)
        else:
            self.cloudformation.execute_change_set(**self._change_set)

    def _events(self) -> Iterator[Any]:
        """The newest first."""
        return self._pages("describe_stack_events", "StackEvents", StackName=self.stack_id)

    def news(self) -> None:
        """Show what happened since the last time: a line for each resource that is done."""
        fresh = []
        for event in self._events():
            if event["EventId"] == self._seen:
                break
            fresh.append(event)
        for event in reversed(fresh):
            self._seen = event["EventId"]
            self._tell(event, event.get("ResourceStatus", "_IN_PROGRESS"))

    def _tell(self, event: Mapping[str, Any], state: str) -> None:
        name = f"{event['LogicalResourceId']} ({event['ResourceType']})"
        reason = redact(event.get("ResourceStatusReason", ""))
        if state.endswith("_IN_PROGRESS"):
            return
        if event["PhysicalResourceId"] == event["StackId"]:
            self.status = state
            return
        click.echo(f"  {event['Timestamp']:%H:%M:%S}  {self.region}  {state:<16} {name}")
        if state.endswith("_FAILED") and "cancelled" not in reason.lower():
            self.failures.append(f"{name}: {reason} {_reason_advice(reason)}")
        if state == "DELETE_SKIPPED":
            self.kept.append(name)


def _follow(sites: Sequence[Site]) -> bool:
    """Show what happens until all have ended. Returns whether all ended as was wanted."""
    try:
        while begun := [site for site in sites if site.status == "BEGUN"]:
            time.sleep(POLL_S)
            for site in begun:
                site.news()
    except BaseException:
        click.echo("CloudFormation goes on by itself: `workshop aws status` shows how far it is. "
                   "The same command again does what is left.", err=True)  # fmt: skip
        raise
    good = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"}
    failed = [site for site in sites if site.status not in good]
    for site in failed:
        click.echo(f"\n{site.name} in {site.region} ended as {site.status}:")
        click.echo("\n".join(f"  {failure}" for failure in site.failures[:3]))
        zones = [site.parameters.get(name, "") for name in ("Zone1", "Zone2")]
        if any(zones) and re.search("zone|capacity", " ".join(site.failures), re.IGNORECASE):
            click.echo(f"  Its zones are {' and '.join(zones)}; -p Zone1=… -p Zone2=… are others.")
    return not failed


def _confirm(*, yes: bool) -> bool:
    try:
        return yes or click.confirm("Go on?")
    except click.Abort:
        said = "Nobody said yes, so nothing was changed. Without a terminal, --yes says it before."
        raise AwsError(said) from None


def find_region(given: str | None) -> str:
    """The Region that an option, AWS_REGION, or boto3's configuration names; no network.

    Raises:
        AwsError: none does, or there is no such Region.

    """
    with _plainly():
        region = given or os.environ.get("AWS_REGION") or boto3.Session().region_name
    if not region:
        said = "No AWS Region is set. Give --region us-east-1, set AWS_REGION, or run"
        raise AwsError(f"{said} `aws configure`.")
    check_region(region, "--region" if given else "the environment or boto3's configuration")
    return region


def check_region(region: str, source: str) -> None:
    """Refuse what is no Region.

    Raises:
        AwsError: boto3 knows no such Region.

    """
    session = boto3.Session(region_name="us-east-1")
    partitions = session.get_available_partitions()
    known = [one for p in partitions for one in session.get_available_regions("ec2", p)]
    if region not in known:
        near = difflib.get_close_matches(region, known, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Regions are named like us-east-1."
        newer = "(One newer than boto3 needs a newer boto3.)"
        raise AwsError(
            f"{region!r} (from {source}) is not a Region that boto3 knows. {hint} {newer}"
        )


# --- deploy


@_plainly()
def deploy(region: str | None, stack: str, given: Mapping[str, str], *, yes: bool = False,
           dry_run: bool = False, function: bool = True) -> bool:  # fmt: skip
    """Make or change the workshop's stack, after a yes; again, it does what is left.

    Args:
        region: None for the configured one.
        stack: its name.
        given: parameters; those left out keep their values.
        yes: do not ask.
        dry_run: only show what would change, and what it costs.
        function: have the load-test function too.

    Returns:
        Whether the stack is as it was wanted; True also where only a look was wanted.

    Raises:
        AwsError: the request, the account or the Region does not allow it.

    """
    site = Site(find_region(region), stack)
    click.echo(site.who())
    values = {**_look_around(site, given), **given}
    if site.plan(values):
        try:
            site.show(values)
            go_on = not dry_run and _confirm(yes=yes)
        except BaseException:
            site.discard()
            raise
        if not go_on:
            site.discard()
            click.echo("Nothing was changed.")
            return dry_run
        site.begin()
        if not _follow([site]):
            click.echo("Put right what failed, and deploy again; a new stack has to be deleted "
                       f"before: `workshop aws destroy {site.options}`.")  # fmt: skip
            return False
    else:
        click.echo("Nothing to change.")
    return dry_run or _fill(site, values, function=function)


def _look_around(site: Site, given: Mapping[str, str]) -> dict[str, str]:
    """Check what a first stack fails for. Returns what is chosen once, and kept from then on."""
    try:
        site.client("dsql").list_clusters(maxResults=1)
        limits = site.client("lambda").get_account_settings()["AccountLimit"]
        most = limits["ConcurrentExecutions"]
        click.echo(f"✓ AWS Lambda runs {most} functions at once in this account, which queue "
                   "(QueueConcurrency) and load tests (--at-once) share")  # fmt: skip
    except BotoCoreError as error:
        raise AwsError(f"{site.region} seems to have no Aurora DSQL: {error_help(error)}") from None
    except ClientError as error:  # who may not ask may make one all the same
        click.echo(f"? {error_text(error)} A new account runs 10 functions at once.")
    host, chosen = site.value("HostType", given), dict[str, str]()
    if not FREE_PLAN.fullmatch(host):
        click.echo(f"! An account on the free plan cannot start {host}; t4g.small it can.")
    if not site.status and not given.get("VpcId"):
        chosen |= _choose_zones(site, host, given)
    # An image is kept with its host; another processor needs another one, and a new host any.
    stood, arm = site.parameters.get("HostType", "none"), host.startswith("t4g")
    if host != "none" and (stood == "none" or stood.startswith("t4g") != arm):
        image = IMAGE.format("arm64" if arm else "x86_64")
        chosen["HostImage"] = site.client("ssm").get_parameter(Name=image)["Parameter"]["Value"]
    return chosen


def _choose_zones(site: Site, host: str, given: Mapping[str, str]) -> dict[str, str]:
    """Two zones that offer the endpoints of database and cache, and the host's type.

    Those that are given are taken as they are.

    Raises:
        AwsError: there are no two; the text says which offers what.

    """
    wanting = [name for name in ("Zone1", "Zone2") if not given.get(name)]
    if not wanting:
        return {}
    ec2, offers = site.client("ec2"), dict[str, set[str]]()
    for page in ec2.get_paginator("describe_vpc_endpoint_services").paginate():
        for one in page["ServiceDetails"]:
            if re.search(r"\.(dsql-|elasticache|monitoring$)", one["ServiceName"]):
                offers[one["ServiceName"]] = set(one["AvailabilityZones"])
    if host != "none":
        wanted = [{"Name": "instance-type", "Values": [host]}]
        where = "availability-zone"
        found = ec2.describe_instance_type_offerings(LocationType=where, Filters=wanted)
        offers[host] = {one["Location"] for one in found["InstanceTypeOfferings"]}
    common = sorted(set.intersection(*offers.values()) - set(given.values()))
    if len(common) < len(wanting):
        listed = "; ".join(f"{name} in {', '.join(sorted(z))}" for name, z in offers.items())
        raise AwsError(
            f"{site.region} has no two zones with all that is needed: {listed}. Choose another "
            "Region, another HostType, or -p Zone1=… -p Zone2=… of your own."
        )
    chosen = {**dict(zip(wanting, common, strict=False)), **given}
    click.echo(f"✓ zones {chosen['Zone1']} and {chosen['Zone2']}")
    return chosen


def _fill(site: Site, given: Mapping[str, str], *, function: bool) -> bool:
    """Put into the bucket what host and function come from. Returns whether all went well."""
    site.look()
    s3, bucket = site.client("s3"), site.outputs["BucketName"]
    git = ["git", "archive", "--format=tar.gz", "HEAD"]
    packed = subprocess.run(git, cwd=CHECKOUT, capture_output=True, check=False)
    if packed.returncode == 0:
        s3.put_object(Bucket=bucket, Key="setup/workshop.tar.gz", Body=packed.stdout)
        click.echo("✓ what git has committed is in the bucket, for the host's `get-workshop`")
    else:
        click.echo(
            "! git is not installed here; on the host, clone or copy the workshop to ~/workshop"
        )
    if function:
        with tempfile.TemporaryDirectory() as folder:
            how = {name: site.value(key, given) for name, key in WORKER_FOR.items()}
            worker = build_package(Path(folder, "worker.zip"), **how)
            digest = hashlib.sha256(worker.read_bytes()).hexdigest()[:16]
            key = f"setup/load-worker-{digest}.zip"  # a stack looks at the key, not into the zip
            s3.upload_file(str(worker), bucket, key)
        click.echo("The load-test function:")
        if site.plan({"CodeKey": key}):
            site.begin()
            if not _follow([site]):
                return False
    site.look()
    click.echo(
        f"It costs, used or not, until `workshop aws destroy {site.options}`. The way in:\n"
        f"  {site.outputs.get('HostSession', 'workshop aws grant')}\n  docs/on-aws.md goes on."
    )
    return True


@_plainly()
def grant(region: str | None, stack: str) -> None:
    """Create the database user of host and function, as admin; again, it changes nothing.

    Raises:
        AwsError: there is no such stack, or the database does not answer or refuses.

    """
    site = Site(find_region(region), stack)
    if not site.status:
        raise AwsError(f"There is no stack {stack} in {site.region}: `workshop aws deploy`.")
    try:
        if site.outputs["IamUserName"] != "admin":
            _grant(site.region, site.outputs)
    except psycopg2.Error as error:
        raise AwsError(
            f"The database user was not set up: {error_help(error)} docs/aws-architecture.md has "
            "the statements; -p IamUserName=admin does without that user."
        ) from None
    click.echo(f"✓ Host and function sign in to the database as {site.outputs['IamUserName']}.")


def _grant(region: str, outputs: Mapping[str, str]) -> None:
    inside = os.environ.get("WORKSHOP_STACK")  # set on the host, where the private name is known
    settings = load_settings(
        workshop_stack="",
        aws_region=region,
        dsql_endpoint=outputs["DSQLClusterEndpoint" if inside else "DSQLClusterPublicEndpoint"],
        database_name=outputs["DatabaseName"],
        aurora_dsql_port=int(outputs["DatabasePort"]),
        iam_username="admin",
    )
    endpoint: Any = external_database(settings.values)
    connection = psycopg2.connect(**endpoint.arguments, password=endpoint.token())
    connection.autocommit = True
    user, database = outputs["IamUserName"], sql.Identifier(outputs["DatabaseName"])
    role = sql.Identifier(user)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [user])
        if not cursor.fetchall():
            cursor.execute(sql.SQL("CREATE ROLE {} WITH LOGIN").format(role))
        cursor.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
        cursor.execute("SELECT arn FROM sys.iam_pg_role_mappings WHERE pg_role_name = %s", [user])
        wanted = {arn for name, arn in outputs.items() if name.endswith("RoleArn")}
        for arn in sorted(wanted - {arn for (arn,) in cursor.fetchall()}):
            cursor.execute(sql.SQL("AWS IAM GRANT {} TO {}").format(role, sql.Literal(arn)))
    connection.close()


# --- status, destroy


@_plainly()
def status(region: str | None, stack: str, *, as_json: bool = False) -> None:
    """Show the stack: state, age, cost so far, outputs, what it costs; no account numbers.

    Raises:
        AwsError: there is none, or it is not the workshop's.

    """
    site = Site(find_region(region), stack)
    if not site.status:
        raise AwsError(
            f"There is no stack {stack} in {site.region}. Is it in another Region (--region), or "
            "another account? `workshop aws deploy` makes one."
        )
    hours = (datetime.now(UTC) - site.made).total_seconds() / 3600
    charged = min(hours, 24 * int(site.value("EndsAfterDays", {}) or 0) or hours)
    resources = site.resources()
    per_hour = sum(site.charges(resources, {}).values())
    facts = {
        "stack": stack,
        "region": site.region,
        "status": site.status,
        "age_hours": round(hours, 1),
        "usd_so_far": round(per_hour * charged, 2),
        **{name: redact(value) for name, value in sorted(site.outputs.items())},
    }
    lines = [f"{name:<26} {value}" for name, value in facts.items()]
    text = "\n".join([*lines, site.price_text(resources, {})])
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)


@_plainly()
def destroy(region: str | None, stack: str, *, yes: bool = False, linked: bool = False) -> bool:
    """Delete a stack, after a yes, and say what remains.

    Args:
        region: None for the configured one.
        stack: its name. A side of a database over two Regions goes together with the other side.
        yes: do not ask.
        linked: the workshop in both Regions and then its database, which `link` made.

    Returns:
        Whether all is gone that was to go; also where nothing was there.

    Raises:
        AwsError: it is not ours, or protected.

    """
    here = Site(find_region(region), stack)
    click.echo(here.who())
    rounds = [_sides(here.region, stack) if stack.endswith("-database") else [here]]
    if linked:
        sides = _sides(here.region, f"{stack}-database")
        rounds = [[Site(side.region, stack) for side in sides], sides]
    rounds = [[site for site in sites if site.status] for sites in rounds]
    for site in (site for sites in rounds for site in sites):
        _say_what_goes(site)
    if not any(rounds):
        click.echo(f"There is no stack {stack} in {here.region}; nothing to delete.")
    elif not _confirm(yes=yes):
        click.echo("Nothing was deleted.")
        return False
    return all(_delete(sites) for sites in rounds)


def _say_what_goes(site: Site) -> None:
    if site.parameters.get("DeletionProtection") == "true":
        raise AwsError(
            f"The database of {site.name} in {site.region} is protected. If it may go with all its "
            f"tables: `workshop aws deploy {site.options} -p DeletionProtection=false` (of a "
            "linked one: `workshop aws link …` with that), then try again."
        )
    lost = ", ".join(LOST[kind] for kind in site.resources().values() if kind in LOST)
    click.echo(f"This deletes {site.name} in {site.region} for good, and with it {lost}.")


def _delete(sites: Sequence[Site]) -> bool:
    """Delete stacks at the same time, again while Lambda holds a network, and say what remains."""
    for attempt in range(DELETE_TRIES):
        for site in sites:
            site.begin(delete=True)
        ok = _follow(sites)
        said = " ".join(failure for site in sites for failure in site.failures)
        if ok or not re.search("(?i)interface|dependen", said):
            break
        if attempt < DELETE_TRIES - 1:
            click.echo(f"Trying again in {DELETE_AGAIN_S / 60:.0f} minutes; or Ctrl-C, and the "
                       "same command later.")  # fmt: skip
            time.sleep(DELETE_AGAIN_S)
            sites = [site for site in sites if site.status != "DELETE_COMPLETE"]
    for site in sites:
        again = f"is NOT gone, and may cost: again `workshop aws destroy {site.options}`"
        gone = "is deleted" if site.status == "DELETE_COMPLETE" else again
        remains = "; ".join([*site.kept, "metrics, which cost nothing, for 15 months"])
        click.echo(f"{site.name} in {site.region} {gone}. What remains besides: {remains}")
    return ok


# --- two Regions


def _sides(region: str, name: str) -> list[Site]:
    """Both sides of a database over two Regions, as far as they are known: each names the other."""
    here = Site(region, name)
    return [here, Site(here.parameters["PeerRegion"], name)] if here.status else [here]


@_plainly()
def link(regions: Sequence[str], witness: str, stack: str, given: Mapping[str, str], *,
         yes: bool = False) -> bool:  # fmt: skip
    """Make one database over two Regions, after a yes; interrupted, it goes on where it was.

    Both sides are made without a peer first; then both learn of each other at the same time, since
    either may have to wait for the other (Aurora DSQL User Guide, "Configuring Aurora DSQL clusters
    using AWS CloudFormation"). `destroy` undoes it, from either side, however far it came.

    Args:
        regions: the two.
        witness: the third Region.
        stack: the workshop's stack, after which those of the database are called.
        given: parameters of multi-region.yaml for both.
        yes: do not ask.

    Returns:
        Whether they are linked.

    Raises:
        AwsError: the Regions do not go together, or a side belongs to another pair.

    """
    if len(regions) != 2 or len({*regions, witness}) != 3:
        raise AwsError(
            "One database spans two Regions (--regions us-east-1,us-east-2) and a third as the "
            "witness (--witness us-west-2); all three are different."
        )
    for one in (*regions, witness):
        check_region(one, "--regions or --witness")
    sides = [Site(one, f"{stack}-database") for one in regions]
    click.echo(sides[0].who())
    wanted = [{**given, "WitnessRegion": witness, "PeerRegion": one} for one in reversed(regions)]
    for side, values in zip(sides, wanted, strict=True):
        has = {**values, **side.parameters}
        if (has["WitnessRegion"], has["PeerRegion"]) != (witness, values["PeerRegion"]):
            raise AwsError(
                f"{side.name} in {side.region} has {has['WitnessRegion']} as its witness and "
                f"{has['PeerRegion']} as its peer. Repeat the command with those, or with --stack."
            )
    click.echo(f"One database over {' and '.join(regions)}, witness {witness}. It costs nothing an "
               "hour; writes are charged in both Regions, storage in each.")  # fmt: skip
    if not _confirm(yes=yes):
        click.echo("Nothing was changed.")
        return False
    if not _change_both(sides, wanted):
        return False
    arns = [side.outputs["DSQLClusterArn"] for side in sides]
    for values, own, peer in zip(wanted, arns, reversed(arns), strict=True):
        values.update(ClusterArn=own, PeerClusterArn=peer)
    return _change_both(sides, wanted)


def _change_both(sides: Sequence[Site], values: Sequence[Mapping[str, str]]) -> bool:
    """Change both sides at the same time, as far as there is something to change."""
    planned = [side for side, one in zip(sides, values, strict=True) if side.plan(one)]
    for side in planned:
        side.begin()
    ok = _follow(planned)
    for side in sides:
        side.look()
    return ok


@_plainly()
def deploy_linked(region: str | None, stack: str, given: Mapping[str, str], **how: bool) -> bool:
    """Deploy the workshop in both Regions of a linked database; otherwise as `deploy`.

    Raises:
        AwsError: there is no linked database, or as `deploy`.

    """
    sides = _sides(find_region(region), f"{stack}-database")
    if len(sides) != 2 or {side.outputs.get("Phase") for side in sides} != {"linked"}:
        raise AwsError(
            f"There is no database {sides[0].name} that is linked in both Regions. `workshop aws "
            "link` makes it, and finishes one that is half done."
        )
    names = ("ClusterArn", "ClusterVpcEndpoint", "ClusterVpcEndpointServiceName")
    for side, network in zip(sides, NETWORKS, strict=True):
        click.echo(f"\n--- {side.region}")
        values = {"VpcCidr": Site(side.region, stack).parameters.get("VpcCidr", network)}
        values.update({name: side.outputs[name] for name in names}, **given)
        if not deploy(side.region, stack, values, **how):
            return False
    return True
