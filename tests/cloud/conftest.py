"""AWS as far as this machine has it: an emulated account, and the stand-in with a stack in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest

from workshop_lib.lambda_package import RUNNING
from workshop_lib.paths import CHECKOUT
from workshop_lib.services.engines import OWNER
from workshop_lib.services.state_folder import StateFolder

TESTS = Path(__file__).parent.parent
# The last one for `cloud`: moto files classes under the second part of their module's name.
sys.path += [str(TESTS / "cloud" / "standin"), str(TESTS / "load"), str(TESTS)]
from aws import ACCOUNT  # noqa: E402
from lambda_runtime import HERE as ARCHITECTURE  # noqa: E402
from stand_in import NAMESPACE, StandIn  # noqa: E402

PYTHON = min(RUNNING, "3.13")
"""The newest that the template knows, if this one is newer."""
TEMPLATES = CHECKOUT / "cloudformation"
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
            TemplateBody=(TEMPLATES / f"{template}.yaml").read_text(),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in {**needed, **parameters}.items()
            ],
            Capabilities=["CAPABILITY_IAM"],
        )
        (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
        return {found["OutputKey"]: found["OutputValue"] for found in stack["Outputs"]}

    def delete(self, name, region=HERE):
        self.client("cloudformation", region).delete_stack(StackName=name)

    def everything(self, region=HERE):
        """How much there is of what costs something, or stands in the way of another stack."""
        caches = self.resources.ServerlessCache.existing
        asked = {
            "buckets": self.client("s3").list_buckets()["Buckets"],
            "queues": self.client("sqs", region).list_queues().get("QueueUrls", []),
            "functions": self.client("lambda", region).list_functions()["Functions"],
            "mappings": self.client("lambda", region).list_event_source_mappings()[
                "EventSourceMappings"
            ],
            "logs": self.client("logs", region).describe_log_groups()["logGroups"],
            "roles": self.client("iam").list_roles()["Roles"],
            "profiles": self.client("iam").list_instance_profiles()["InstanceProfiles"],
            "policies": self.client("iam").list_policies(Scope="Local")["Policies"],
            "dashboards": self.client("cloudwatch", region).list_dashboards()["DashboardEntries"],
            "clusters": self.client("dsql", region).list_clusters()["clusters"],
            "caches": [name for name, one in caches.items() if one.region == region],
            "instances": [
                one for one in self.moto("ec2", region).all_instances() if one.state != "terminated"
            ],
        }
        return {kind: len(found) for kind, found in asked.items()}


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
    folder = tmp_path_factory.mktemp("aws with a space")
    found = StandIn(folder, engine, owner["password"])
    try:
        given = {"Namespace": NAMESPACE, "Architecture": ARCHITECTURE, "PythonVersion": PYTHON}
        words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        done = found.deploy("--no-function", *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        found.start_services()
        role = found.outputs["NotebookRoleArn"]
        found.let("host", "ASIASTANDINHOST", found.policy("NotebookPolicyArn"), role=role)
        done = found.run("aws", "grant")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def function(aws: StandIn) -> str:
    """The name of the stack's function, which runs; empty where its package cannot be built."""
    if PYTHON != RUNNING:
        return ""
    done = aws.deploy()
    if "could not be had" in done.stderr:
        return ""
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    aws.start_function()
    return aws.outputs["LoadFunctionName"]
