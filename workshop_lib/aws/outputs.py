"""The outputs of the workshop's CloudFormation stack, read as settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from workshop_lib.errors import SettingsError
from workshop_lib.services.endpoints import Endpoint
from workshop_lib.services.error_help import advice, error_text

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
        session = boto3.Session(region_name=region)
        place = session.region_name
        client = session.client("cloudformation", config=LIMITS)
        (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    except (ClientError, BotoCoreError, ResponseParserError, ValueError) as error:
        # A policy for one stack also refuses where there is none, so as not to reveal that.
        where = region or "the Region that is configured"
        asked = Endpoint(f"CloudFormation in {where}", "", 443, {}, "WORKSHOP_STACK", aws=True)
        raise SettingsError(
            f"The outputs of the stack {name!r} cannot be read: {error_text(error)} "
            f"Is {where} the Region in which it was deployed (AWS_REGION)? If so: "
            f"{advice(error, asked)} Without WORKSHOP_STACK the workshop runs on this machine; "
            "DSQL_ENDPOINT, VALKEY_ENDPOINT and BUCKET_NAME also say where the services are."
        ) from None
    outputs = {found["OutputKey"]: found["OutputValue"] for found in stack.get("Outputs", [])}
    if missing := [output for output in NEEDED if output not in outputs]:
        raise SettingsError(
            f"The stack {name!r} in {place} is {stack['StackStatus']} and has no output "
            f"{' or '.join(missing)}. If it is being made, wait (`workshop aws status`); else "
            "WORKSHOP_STACK has to name a stack of cloudformation/workshop.yaml."
        )
    found = {setting: outputs[output] for output, setting in SETTINGS.items() if output in outputs}
    return {"aws_region": place, **found}
