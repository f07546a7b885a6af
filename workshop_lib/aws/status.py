"""`workshop aws status`: a stack's state, what it gives, what it costs, and what failed last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workshop_lib.aws.clients import Clients
from workshop_lib.aws.console import Console, table
from workshop_lib.aws.following import Failure, Watch
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.pricing import per_hour, price_lines
from workshop_lib.aws.regions import find_region
from workshop_lib.aws.stacks import Stack, check_name, check_ours, find_stack, resources_of
from workshop_lib.aws.template import Template, read_template
from workshop_lib.errors import AwsError, redact

STARTS = {
    "CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS", "REVIEW_IN_PROGRESS",
}  # fmt: skip
"""With which status of the stack an undertaking begins."""


@dataclass(frozen=True, slots=True)
class Status:
    """A stack as it stands; account numbers are hidden.

    Attributes:
        stack: its name.
        region: where.
        status: such as UPDATE_COMPLETE.
        outputs: by name.
        usd_per_hour: what it costs before load, in us-east-1.
        working_on: resources that CloudFormation is at work on.
        failures: what failed in the last undertaking, the first one first.

    """

    stack: str
    region: str
    status: str
    outputs: dict[str, str]
    usd_per_hour: float
    working_on: list[str]
    failures: list[Failure]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "stack": self.stack,
            "region": self.region,
            "status": self.status,
            "usd_per_hour": round(self.usd_per_hour, 4),
            "outputs": self.outputs,
            "working_on": self.working_on,
            "failures": [
                {"resource": one.resource, "type": one.kind, "reason": one.reason}
                for one in self.failures
            ],
        }


def read_status(name: str, region: str | None) -> tuple[Status, Stack, Template]:
    """Look at a stack.

    Raises:
        AwsError: there is none, it is not the workshop's, or AWS does not answer.

    """
    check_name(name)
    clients = Clients(find_region(region).region)
    clients.who()  # a quick question, which finds out whether there is a way to AWS at all
    stack = find_stack(clients.stacks, name)
    if stack is None:
        raise AwsError(
            f"There is no stack {name} in {clients.region}. Is it in another Region (--region), "
            "or another account? `workshop aws deploy` makes one."
        )
    template = read_template("workshop" if stack.planned else check_ours(stack))
    values = {**template.defaults(), **stack.parameters}
    return (
        Status(
            stack=stack.name,
            region=clients.region,
            status=stack.status,
            outputs={key: redact(value) for key, value in stack.outputs.items()},
            usd_per_hour=0.0 if stack.planned else per_hour(template, values),
            working_on=[
                one["LogicalResourceId"]
                for one in (resources_of(clients.stacks, stack) if stack.in_progress else ())
                if one["ResourceStatus"].endswith("_IN_PROGRESS")
            ],
            failures=_last_failures(clients, stack),
        ),
        stack,
        template,
    )


def show_status(name: str, region: str | None, console: Console) -> None:
    """Tell how a stack stands.

    Raises:
        AwsError: as `read_status`.

    """
    found, stack, template = read_status(name, region)
    console.say(f"{found.stack} in {found.region}: {found.status}")
    if stack.reason:
        console.say(f"  {redact(stack.reason)}")
    if found.working_on:
        console.say(f"  at work on: {', '.join(found.working_on)}")
    if found.failures:
        console.say("What failed last:")
        for line in (line for one in found.failures for line in one.lines()):
            console.say(line)
    if found.outputs:
        console.say("Outputs:")
        for line in table(sorted(found.outputs.items())):
            console.say(line)
    if not stack.planned:
        values = {**template.defaults(), **stack.parameters}
        for line in price_lines(template, values, found.region):
            console.say(line)


def _last_failures(clients: Clients, stack: Stack) -> list[Failure]:
    """What failed since the last undertaking began."""
    if "ROLLBACK" not in stack.status and "FAILED" not in stack.status:
        return []
    watch = Watch(clients.stacks, stack.id)
    watch.skip_past(of=STARTS)
    with plainly("read the stack's events"):
        watch.news()
    return watch.failures
