"""AWS as far as this machine has it: the workshop's stack, made in the stand-in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workshop_lib.settings import CHECKOUT

sys.path.append(str(Path(__file__).parent / "standin"))
from stand_in import HOST, NAMESPACE, STACK, StandIn


@pytest.fixture(scope="session")
def aws(shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The stand-in with a stack, and `host` signed in with the notebooks' policy alone."""
    engine = dict(shared.endpoints.database.arguments)
    found = StandIn(tmp_path_factory.mktemp("aws with a space"), engine)
    try:
        (prefixes,) = found.client("ec2").describe_managed_prefix_lists(
            Filters=[{"Name": "prefix-list-name", "Values": ["com.amazonaws.us-east-1.s3"]}]
        )["PrefixLists"]
        stacks = found.client("cloudformation")
        given = {"S3PrefixListId": prefixes["PrefixListId"], "Namespace": NAMESPACE}
        stacks.create_stack(
            StackName=STACK,
            TemplateBody=(CHECKOUT / "cloudformation" / "workshop.yaml").read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
        )
        (stack,) = stacks.describe_stacks(StackName=STACK)["Stacks"]
        found.start_services({one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]})
        found.let("host", **HOST, statements=found.policy("NotebookPolicyArn"))
        yield found
    finally:
        found.close()
