"""Clients of one Region that give up in seconds rather than minutes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config

from workshop_lib.aws.plain import plainly

LIMITS = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 4},
)
FIRST = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
"""For the first question, which finds out whether there is a way to AWS at all."""


class Clients:
    """The boto3 clients of a Region, each made on first use.

    Credentials come from where boto3 looks for them. Its own limits for a machine's metadata
    service, one attempt of a second, keep that from hanging where there is none.
    """

    def __init__(self, region: str) -> None:
        with plainly("use AWS"):
            self._session = boto3.Session(region_name=region)
        self.region = region

    def who(self) -> str:
        """Who is signed in, without the account's number: "user/ada", "assumed-role/Admin/ada".

        Raises:
            AwsError: nobody is, or AWS does not answer.

        """
        with plainly("ask AWS who you are"):
            found = self._make("sts", FIRST).get_caller_identity()["Arn"]
        return str(found).rsplit(":", 1)[-1]

    @cached_property
    def stacks(self) -> Any:
        """CloudFormation."""
        return self._make("cloudformation")

    @cached_property
    def ec2(self) -> Any:
        """EC2, for what a network is made of."""
        return self._make("ec2")

    @cached_property
    def dsql(self) -> Any:
        """Aurora DSQL's control plane."""
        return self._make("dsql", FIRST)

    @cached_property
    def s3(self) -> Any:
        """S3, by the Region's own name also in us-east-1."""
        return self._make(
            "s3", LIMITS.merge(Config(s3={"us_east_1_regional_endpoint": "regional"}))
        )

    def has(self, service: str) -> bool:
        """Whether boto3 lists the service in this Region; it does not list every service."""
        return self.region in self._session.get_available_regions(service)

    def _make(self, service: Any, limits: Config = LIMITS) -> Any:
        with plainly(f"use {service}"):
            return self._session.client(service, config=limits)
