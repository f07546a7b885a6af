"""What CloudFormation would change, before it does: made, shown, carried out or thrown away."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.aws.console import Console
from workshop_lib.aws.plain import advise, plainly
from workshop_lib.aws.stacks import Stack
from workshop_lib.aws.template import Template
from workshop_lib.errors import AwsError, redact

POLL_S = 2.0
PATIENCE_S = 600.0
NOTHING = ("didn't contain changes", "No updates are to be performed")
"""What CloudFormation says of a change set that changes nothing. It calls that a failure."""
LOST = {
    "AWS::DSQL::Cluster": "the database with all its tables",
    "AWS::ElastiCache::ServerlessCache": "the cache with all it holds",
    "AWS::S3::Bucket": "the bucket with all its objects",
    "AWS::EC2::Instance": "the notebook host's disk with what you wrote on it",
}
"""What is gone when a resource of the kind is replaced or removed."""
WORDS = {"Add": "add", "Modify": "change", "Remove": "remove"}


@dataclass(frozen=True, slots=True)
class Change:
    """What would become of a resource.

    Attributes:
        action: "add", "change", "remove", or one that CloudFormation has besides.
        replacement: "True", "False", or "Conditional": only carrying it out will show.

    """

    action: str
    resource: str
    kind: str
    replacement: str

    @property
    def word(self) -> str:
        """What happens to it."""
        if self.action == "change" and self.replacement == "True":
            return "REPLACE"
        if self.action == "change" and self.replacement == "Conditional":
            return "may REPLACE"
        return self.action

    @property
    def loss(self) -> str:
        """What data goes with it; empty if none does."""
        gone = self.action == "remove" or self.word != self.action
        return LOST.get(self.kind, "") if gone else ""


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """A change set that can be carried out.

    Attributes:
        id: the change set's.
        stack_id: of the stack, which may exist for it only.
        makes: whether the stack is new.
        changes: in CloudFormation's order.

    """

    id: str
    stack_id: str
    makes: bool
    changes: tuple[Change, ...]


def prepare(
    client: Any,
    name: str,
    template: Template,
    parameters: Mapping[str, str],
    *,
    before: Stack | None,
    console: Console,
) -> ChangeSet | None:
    """Have CloudFormation find out what would change. Nothing does yet.

    Args:
        client: of CloudFormation.
        name: of the stack.
        template: what it shall be.
        parameters: those that are given; others keep the value they have.
        before: the stack as it is; None if it is new.
        console: for waiting.

    Returns:
        What would change; None if nothing would.

    Raises:
        AwsError: CloudFormation does not take it; nothing of it is left behind.

    """
    makes = before is None or before.planned
    kept = [] if before is None or makes else [k for k in before.parameters if k not in parameters]
    request = {
        "StackName": name,
        "ChangeSetName": f"workshop-{secrets.token_hex(6)}",
        "ChangeSetType": "CREATE" if makes else "UPDATE",
        "TemplateBody": template.body,
        "Capabilities": ["CAPABILITY_IAM"],
        "Parameters": [
            *({"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()),
            *(
                {"ParameterKey": k, "UsePreviousValue": True}
                for k in kept
                if k in template.parameters
            ),
        ],
    }
    with plainly(f"prepare the change of {name}"):
        try:
            made = client.create_change_set(**request)
        except ClientError as error:
            if any(words in str(error) for words in NOTHING):
                return None
            raise
    change_set = ChangeSet(made["Id"], made["StackId"], makes, ())
    try:
        described = _wait(client, change_set, console)
        if described["Status"] == "FAILED":
            _accept_nothing(name, described.get("StatusReason") or "")
        else:
            return replace(change_set, changes=tuple(_changes(client, described)))
    except BaseException:
        discard(client, change_set, was_planned=before is not None)
        raise
    discard(client, change_set, was_planned=before is not None)
    return None


def discard(client: Any, change_set: ChangeSet, *, was_planned: bool) -> None:
    """Throw a change set away, and the stack that exists for it only.

    Args:
        client: of CloudFormation.
        change_set: what was not carried out.
        was_planned: whether the stack was there before, if only on paper.

    """
    # Whatever made us give up is what has to be said, not that tidying up failed as well.
    with contextlib.suppress(ClientError, BotoCoreError):
        client.delete_change_set(ChangeSetName=change_set.id, StackName=change_set.stack_id)
        if change_set.makes and not was_planned:
            client.delete_stack(StackName=change_set.stack_id)


def carry_out(client: Any, change_set: ChangeSet) -> None:
    """Have CloudFormation begin.

    Raises:
        AwsError: it refuses.

    """
    with plainly("carry out the change"):
        client.execute_change_set(ChangeSetName=change_set.id, StackName=change_set.stack_id)


def change_lines(change_set: ChangeSet) -> list[str]:
    """What would change, to read: one line each, but what is only added by its kind."""
    lines = [
        f"  {change.word:<12}{change.resource} ({change.kind})"
        for change in change_set.changes
        if change.action != "add"
    ]
    added: dict[str, list[str]] = {}
    for change in change_set.changes:
        if change.action == "add":
            added.setdefault(change.kind, []).append(change.resource)
    lines += [f"  {'add':<12}{kind}: {', '.join(names)}" for kind, names in added.items()]
    for change in change_set.changes:
        if change.loss:
            perhaps = "may be" if change.word.startswith("may") else "is"
            verb = "removed" if change.action == "remove" else "replaced"
            lines.append(
                f"  WARNING: {change.resource} {perhaps} {verb}. Then {change.loss} is LOST."
            )
    return lines


def _wait(client: Any, change_set: ChangeSet, console: Console) -> Mapping[str, Any]:
    end = console.clock() + PATIENCE_S
    while True:
        with plainly("read what would change"):
            found: Mapping[str, Any] = client.describe_change_set(
                ChangeSetName=change_set.id, StackName=change_set.stack_id
            )
        if found["Status"] in {"CREATE_COMPLETE", "FAILED"}:
            return found
        if console.clock() > end:
            raise AwsError(
                f"CloudFormation has not found out in {PATIENCE_S / 60:.0f} minutes what would "
                "change. Nothing was changed. Try again later."
            )
        console.sleep(POLL_S)


def _accept_nothing(name: str, reason: str) -> None:
    """Accept that nothing would change; anything else is an error."""
    if any(words in reason for words in NOTHING):
        return
    said = redact(reason).rstrip(".") or "no reason"
    raise AwsError(
        f"CloudFormation cannot change {name} like this: {said}. Nothing was changed. "
        f"{advise(reason)}".rstrip()
    )


def _changes(client: Any, described: Mapping[str, Any]) -> list[Change]:
    found = list(described.get("Changes", ()))
    while token := described.get("NextToken"):
        with plainly("read what would change"):
            described = client.describe_change_set(
                ChangeSetName=described["ChangeSetId"], NextToken=token
            )
        found += described.get("Changes", ())
    return [
        Change(
            action=WORDS.get(one["Action"], one["Action"].lower()),
            resource=one["LogicalResourceId"],
            kind=one["ResourceType"],
            replacement=one.get("Replacement") or "False",
        )
        for one in (change["ResourceChange"] for change in found)
    ]
