"""What has to be right before anything is changed; each is asked once, and the first ✗ ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import ClientError

from workshop_lib.aws.clients import Clients
from workshop_lib.aws.console import Console
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.regions import find_region
from workshop_lib.aws.stacks import Stack, check_ours, find_stack, place_of
from workshop_lib.aws.template import MOST_DIRECT, Template
from workshop_lib.errors import AwsError, redact
from workshop_lib.services.error_help import error_code

T = TypeVar("T")
_BROKEN = {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"}


def step(console: Console, name: str, ask: Callable[[], tuple[T, str]]) -> T:
    """Ask one question and show its answer as a line.

    Args:
        console: for the line.
        name: what is asked.
        ask: gives what was found, and how to tell it.

    Raises:
        AwsError: it is not right.

    """
    try:
        found, detail = ask()
    except AwsError:
        console.say(f"✗ {name}")
        raise
    console.say(f"✓ {name:<12} {redact(detail)}")
    return found


def sign_in(console: Console, region: str | None) -> Clients:
    """Find the Region and who is signed in.

    Raises:
        AwsError: no Region, no credentials, or no answer.

    """

    def place() -> tuple[str, str]:
        found = find_region(region)
        return found.region, f"{found.region} (from {found.source})"

    return enter(console, step(console, "Region", place))


def enter(console: Console, region: str) -> Clients:
    """Find out who is signed in, for a Region that is known to be one.

    Raises:
        AwsError: no credentials, or no answer.

    """

    def who() -> tuple[Clients, str]:
        clients = Clients(region)
        return clients, f"signed in as {clients.who()}"

    return step(console, "Credentials", who)


def check_services(console: Console, clients: Clients) -> None:
    """Make sure that the Region has the two services that not every Region has.

    Raises:
        AwsError: it lacks one.

    """

    def ask() -> tuple[None, str]:
        region = clients.region
        if not clients.has("elasticache"):
            raise AwsError(
                f"{region} has no ElastiCache. Choose another Region: us-east-1 has all."
            )
        doubt = ""
        try:
            with plainly("ask Aurora DSQL for its clusters"):
                try:
                    clients.dsql.list_clusters(maxResults=1)
                except ClientError as error:
                    # Whoever refuses is there. What deploying takes may be allowed nevertheless.
                    if not error_code(error).startswith("AccessDenied"):
                        raise
                    doubt = " (you may not list clusters)"
        except AwsError as error:
            raise AwsError(
                f"Aurora DSQL does not answer in {region}. Not every Region has it; us-east-1 "
                f"does. In detail: {error}"
            ) from None
        return None, f"{region} has Aurora DSQL and ElastiCache{doubt}"

    step(console, "Services", ask)


def check_template(console: Console, clients: Clients, template: Template) -> None:
    """Make sure that CloudFormation takes the template.

    Raises:
        AwsError: it does not.

    """

    def ask() -> tuple[None, str]:
        with plainly(f"have the template {template.name}.yaml checked"):
            clients.stacks.validate_template(TemplateBody=template.body)
        size = len(template.body.encode())
        return None, f"{template.name}.yaml is valid, {size:,} of {MOST_DIRECT:,} bytes"

    step(console, "Template", ask)


def find_prefix_list(console: Console, clients: Clients) -> str:
    """The Region's prefix list of S3, by which security groups name S3.

    Raises:
        AwsError: it cannot be found.

    """
    name = f"com.amazonaws.{clients.region}.s3"

    def ask() -> tuple[str, str]:
        with plainly("look for the prefix list of S3"):
            found = clients.ec2.describe_managed_prefix_lists(
                Filters=[{"Name": "prefix-list-name", "Values": [name]}]
            )["PrefixLists"]
        if not found:
            raise AwsError(
                f"The prefix list {name} was not found. If you know its id, give it: "
                "-p S3PrefixListId=pl-…"
            )
        return str(found[0]["PrefixListId"]), f"{found[0]['PrefixListId']} ({name})"

    return step(console, "Prefix list", ask)


def look_at_stack(
    console: Console, clients: Clients, name: str, template: Template
) -> Stack | None:
    """The stack as it is; None if it is new.

    Raises:
        AwsError: it cannot be changed as it is, or is not ours.

    """

    def ask() -> tuple[Stack | None, str]:
        stack = find_stack(clients.stacks, name)
        if stack is None:
            return None, f"there is no {name} in {clients.region} yet"
        if stack.planned:
            return stack, f"{name} exists on paper only"
        kind = check_ours(stack)
        if kind != template.name:
            raise AwsError(
                f"The stack {name} in {clients.region} was made from {kind}.yaml, not from "
                f"{template.name}.yaml. Choose another name: --stack NAME."
            )
        _check_status(stack)
        return stack, f"{name} is {stack.status}"

    return step(console, "Stack", ask)


def _check_status(stack: Stack) -> None:
    place = place_of(stack.name, stack.region)
    if stack.in_progress:
        raise AwsError(
            f"CloudFormation is at work on {stack.name} ({stack.status}). Wait until it is done; "
            f"`workshop aws status {place}` shows how far it is."
        )
    if stack.status in _BROKEN:
        raise AwsError(
            f"The stack {stack.name} is {stack.status} and cannot be changed any more. "
            f"`workshop aws status {place}` says what failed. Delete it, then deploy again: "
            f"`workshop aws destroy {place}`."
        )
    if stack.status == "UPDATE_ROLLBACK_FAILED":
        raise AwsError(
            f"The stack {stack.name} is UPDATE_ROLLBACK_FAILED: CloudFormation could not go back "
            "to what was before. Put right what it names (`workshop aws status`), then "
            f"`aws cloudformation continue-update-rollback --stack-name {stack.name} "
            f"--region {stack.region}`."
        )
