"""The outputs of the workshop's CloudFormation stack, read as settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from workshop_lib.errors import SettingsError
from workshop_lib.services.endpoints import Endpoint
from workshop_lib.services.error_help import advice, cause_of, error_code, error_help, error_text

SETTINGS = {
    "DSQLClusterEndpoint": "dsql_endpoint",
    "ValkeyEndpoint": "valkey_endpoint",
    "BucketName": "bucket_name",
    "QueueUrl": "queue_url",
    "LoadFunctionName": "load_function",
    "WorkshopNamespace": "workshop_namespace",
    "IamUserName": "iam_username",
    "DatabaseName": "database_name",
    "DatabasePort": "aurora_dsql_port",
}
"""Which output is which setting."""
NEEDED = ("DSQLClusterEndpoint", "ValkeyEndpoint", "BucketName")
LIMITS = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1})


@cache
def read_outputs(name: str, region: str | None) -> Mapping[str, str]:
    """The settings that a stack's outputs give, by name; read once per process.

    Args:
        name: of the stack.
        region: where it is; None for the Region that boto3 is configured for.

    Raises:
        SettingsError: there is no such stack, it is not the workshop's or not finished, or AWS
            does not answer or refuses; the text says what to do.

    """
    try:
        place = region or boto3.Session().region_name
    except BotoCoreError as error:
        raise SettingsError(f"The stack {name!r} cannot be read: {error_help(error)}") from None
    if not place:
        raise SettingsError(
            f"WORKSHOP_STACK names {name!r}, and no Region says where it is: set AWS_REGION."
        )
    stack = _describe(name, place)
    outputs = {found["OutputKey"]: found["OutputValue"] for found in stack.get("Outputs", [])}
    if missing := [output for output in NEEDED if output not in outputs]:
        raise SettingsError(
            f"The stack {name!r} in {place} is {stack['StackStatus']} and has no output "
            f"{' or '.join(missing)}. If it is being made, wait (`workshop aws status`); else "
            "WORKSHOP_STACK has to name a stack of cloudformation/workshop.yaml."
        )
    found = {setting: outputs[output] for output, setting in SETTINGS.items() if output in outputs}
    return {"aws_region": place, **found}


def _describe(name: str, region: str) -> Any:
    try:
        client = boto3.Session().client("cloudformation", region_name=region, config=LIMITS)
        (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    except (ClientError, BotoCoreError, ResponseParserError) as error:
        if error_code(error) == "ValidationError":
            raise SettingsError(
                f"There is no stack {name!r} in {region}. Are AWS_REGION and the account the right "
                "ones? Without WORKSHOP_STACK the workshop runs on this machine."
            ) from None
        # A policy for one stack also refuses where there is none, so as not to reveal that.
        elsewhere = f"Is {region} the Region in which it was deployed (AWS_REGION)? If so: "
        asked = Endpoint(f"CloudFormation in {region}", "", 443, {}, aws=True)
        raise SettingsError(
            f"The outputs of the stack {name!r} in {region} cannot be read: {error_text(error)} "
            f"{elsewhere if cause_of(error) == 'not allowed' else ''}{advice(error, asked)} Or set "
            "DSQL_ENDPOINT, VALKEY_ENDPOINT and BUCKET_NAME yourself."
        ) from None
    return stack
