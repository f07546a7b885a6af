"""How to call a load worker that is an AWS Lambda function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from types_boto3_lambda import LambdaClient

CONNECT_S = 5
SPARE_S = 30
"""Between the function's own time-out and ours, seconds: a cold start, and the way there."""


def lambda_client(
    region: str | None,
    *,
    at_once: int,
    function_timeout_s: float = 900,
    endpoint_url: str | None = None,
) -> LambdaClient:
    """A client by which `LambdaWorkers` calls functions, each of them once.

    Args:
        region: the function's Region; None for the one that boto3 is configured for.
        at_once: invocations at the same time; each holds a connection until it is answered.
        function_timeout_s: the function's own time-out, 900 seconds at most.
        endpoint_url: of a service that stands in for Lambda.

    """
    manners = Config(
        connect_timeout=CONNECT_S,
        # Whoever gives up before the function has ended, or tries again, runs the job twice.
        read_timeout=function_timeout_s + SPARE_S,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=at_once,
        # No byte comes while the function works; a gateway forgets a connection that is silent.
        tcp_keepalive=True,
    )
    return boto3.Session().client(
        "lambda", region_name=region, endpoint_url=endpoint_url, config=manners
    )
