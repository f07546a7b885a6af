"""Stacks as they are: found, told apart from those of others, and listed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from workshop_lib.aws import DEFAULT_NAME
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.template import Kind, Template, read_template
from workshop_lib.errors import AwsError
from workshop_lib.services.error_help import error_code

MOST_LETTERS = 45
"""Of a stack's name. The function is called like the stack and more, and has 64 at most."""
_FORM = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack as CloudFormation describes it.

    Attributes:
        name: it is unique in its Region.
        id: the same for its whole life; also of one that is gone.
        region: where.
        status: such as CREATE_COMPLETE.
        reason: why it has that status, if CloudFormation says so.
        description: the template's.
        parameters, outputs: by name.
        guarded: whether it refuses to be deleted (termination protection).

    """

    name: str
    id: str
    region: str
    status: str
    reason: str
    description: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]
    guarded: bool

    @property
    def in_progress(self) -> bool:
        """Whether CloudFormation is at work on it."""
        return self.status.endswith("_IN_PROGRESS") and not self.planned

    @property
    def planned(self) -> bool:
        """Whether it exists on paper only: a change set that nobody carried out."""
        return self.status == "REVIEW_IN_PROGRESS"

    def is_made_from(self, template: Template) -> bool:
        """Whether a template of ours made it, of whatever version."""
        return self.description.startswith(template.headline)


def place_of(stack: str, region: str) -> str:
    """How a command says which stack it means; what goes without saying is left out."""
    return f"--region {region}" if stack == DEFAULT_NAME else f"--stack {stack} --region {region}"


def check_name(name: str) -> None:
    """Refuse a name that a stack of ours cannot have.

    Raises:
        AwsError: it is too long, or has other letters.

    """
    if not _FORM.fullmatch(name) or len(name) > MOST_LETTERS:
        raise AwsError(
            f"{name!r} cannot be a stack's name: it begins with a letter, has letters, digits and "
            f"hyphens, and at most {MOST_LETTERS} of them."
        )


def find_stack(client: Any, name: str) -> Stack | None:
    """A stack by its name or id; None if there is none.

    Raises:
        AwsError: CloudFormation does not answer, or refuses.

    """
    with plainly(f"look for the stack {name}"):
        try:
            (found,) = client.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            if error_code(error) == "ValidationError" and "not exist" in str(error):
                return None
            raise
    return _stack(found, client.meta.region_name)


def list_ours(client: Any) -> list[Stack]:
    """The workshop's stacks of this Region, of either template.

    Raises:
        AwsError: CloudFormation does not answer, or refuses.

    """
    with plainly("list the stacks"):
        pages = list(client.get_paginator("describe_stacks").paginate())
    everything = [_stack(one, client.meta.region_name) for page in pages for one in page["Stacks"]]
    return [one for one in everything if kind_of(one) is not None and not one.planned]


def kind_of(stack: Stack) -> Kind | None:
    """Which template of ours made it; None for none."""
    kinds: tuple[Kind, ...] = ("workshop", "multi-region")
    return next((kind for kind in kinds if stack.is_made_from(read_template(kind))), None)


def check_ours(stack: Stack) -> Kind:
    """Which template of ours made it.

    Raises:
        AwsError: none did.

    """
    kind = kind_of(stack)
    if kind is None:
        raise AwsError(
            f"The stack {stack.name} in {stack.region} was not made from a template of this "
            f"workshop (it says: {stack.description[:60] or 'nothing'!r}). It is left alone. "
            "Choose another name: --stack NAME."
        )
    return kind


def resources_of(client: Any, stack: Stack) -> list[Mapping[str, Any]]:
    """What a stack has, as CloudFormation lists it.

    Raises:
        AwsError: CloudFormation does not answer, or refuses.

    """
    with plainly(f"list what the stack {stack.name} has"):
        pages = client.get_paginator("list_stack_resources").paginate(StackName=stack.id)
        return [one for page in pages for one in page["StackResourceSummaries"]]


def _stack(found: Mapping[str, Any], region: str) -> Stack:
    return Stack(
        name=found["StackName"],
        id=found["StackId"],
        region=region,
        status=found["StackStatus"],
        reason=found.get("StackStatusReason") or "",
        description=found.get("Description") or "",
        parameters={
            one["ParameterKey"]: one["ParameterValue"] for one in found.get("Parameters", ())
        },
        outputs={one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())},
        guarded=bool(found.get("EnableTerminationProtection")),
    )
