"""AWS as far as this machine has it: an emulated account, and the stand-in with a stack in it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest

from workshop_lib.aws.lambda_package import RUNNING
from workshop_lib.aws.stacks import read_template
from workshop_lib.services.engines import OWNER
from workshop_lib.services.state_folder import StateFolder

TESTS = Path(__file__).parent.parent
# The last one for `cloud`: moto files classes under the second part of their module's name.
sys.path += [str(TESTS / "cloud" / "standin"), str(TESTS / "load"), str(TESTS)]
from aws import ACCOUNT  # noqa: E402
from stand_in import StandIn  # noqa: E402

ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
PYTHON = min(RUNNING, "3.13")
"""The newest that the template knows, if this one is newer."""
HERE = "us-east-1"
THERE = "us-east-2"


class Cloud:
    """An emulated account; moto, which takes seconds to import, is there only now."""

    def __init__(self):
        from cloud import moto_resources

        self.resources = moto_resources

    def client(self, service, region=HERE):
        return boto3.client(service, region_name=region)

    def moto(self, service, region=HERE):
        """What moto keeps for a service."""
        from moto.backends import get_backend

        return get_backend(service)[ACCOUNT][region]

    def deploy(self, name, template="workshop", region=HERE, **parameters):
        """Make or change a stack. Returns its outputs."""
        stacks = self.client("cloudformation", region)
        known = {stack["StackName"] for stack in stacks.describe_stacks()["Stacks"]}
        needed = {"HostImage": self.resources.IMAGE} if template == "workshop" else {}
        act = stacks.update_stack if name in known else stacks.create_stack
        act(
            StackName=name,
            TemplateBody=read_template(template)["Body"],
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in (needed | parameters).items()
            ],
            Capabilities=["CAPABILITY_IAM"],
        )
        (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
        return {found["OutputKey"]: found["OutputValue"] for found in stack["Outputs"]}


@pytest.fixture
def cloud(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": HERE,
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",  # thousands, for each test anew
    }.items():
        monkeypatch.setenv(name, value)
    emulated = Cloud()
    with emulated.resources.mock_aws():
        emulated.resources.teach(monkeypatch)
        yield emulated


@pytest.fixture(scope="module")
def aws(
    shared: Any, state: StateFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StandIn]:
    """The stand-in with a stack, and `host` signed in with the notebooks' policy alone."""
    engine = dict(shared.endpoints.database.arguments)
    owner = {"user": OWNER, "password": state.secrets()["owner"]}
    with closing(psycopg2.connect(**engine | owner)) as connection, connection:
        # DSQL's admin may pass on what it may do.
        grant = "GRANT CREATE ON DATABASE postgres TO admin WITH GRANT OPTION"
        connection.cursor().execute(grant)
    found = StandIn(tmp_path_factory.mktemp("aws with a space"), engine, owner["password"])
    try:
        given = {"Namespace": "cloud", "Architecture": ARCHITECTURE, "PythonVersion": PYTHON}
        words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        found.deploy(*words, *["--no-function"] * (PYTHON != RUNNING))
        role = found.outputs["NotebookRoleArn"]
        found.let("host", "ASIASTANDINHOST", found.policy(), role=role)
        done = found.run("aws", "grant")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        yield found
    finally:
        found.close()
