"""A stand-in for AWS on this machine: everything the workshop's stack has, under AWS's own names.

Real: PostgreSQL (which keeps DSQL's rules), Valkey in cluster mode, the function's zip, TLS with
certificates that are verified, tokens whose signature is checked, policies that are evaluated.
Emulated by moto: the other services. The package notices nothing of it, and takes the same path as
on AWS.
"""

from __future__ import annotations

import ast
import json
import os
import runpy
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from aws import Account
from botocore.config import Config
from dsql import Server as Dsql
from elasticache import Cache
from function import Environments
from lambda_service import EventSourceMapping, LambdaService, serve
from policies import Identity

NAMES_FOLDER = Path(__file__).parent / "names"
REGION = "us-east-1"
OTHER_REGION = "us-east-2"
STACK = "cache-aside-workshop"
NAMES = ("{}.amazonaws.com", "s3.{}.amazonaws.com", "{}.api.aws", "dsql.{}.on.aws")
"""Of hosts in a Region, without their first part."""
teach_names = runpy.run_path(str(NAMES_FOLDER / "sitecustomize.py"))["teach"]


class StandIn:
    """The servers of the stand-in, in threads of this process.

    Args:
        folder: for certificates and lists.
        engine: arguments of psycopg2 by which the local PostgreSQL is reached, as its admin.
        owner: the password of its superuser.

    Attributes:
        outputs: of the stack, by name; empty before `deploy`.

    """

    def __init__(self, folder: Path, engine: dict[str, Any], owner: str) -> None:
        self.folder, self._engine, self._owner = folder, engine, owner
        self.outputs: dict[str, str] = {}
        self._stack = ExitStack()
        self._authority = trustme.CA()
        self.trusted = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.trusted)
        self._names = folder / "names.json"
        self._places: dict[str, int] = {}
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        _prepare_moto(patch)
        self.account = Account()
        self.let("admin", "AKIASTANDINADMIN")
        regional = [f"*.{name.format(one)}" for one in (REGION, OTHER_REGION) for name in NAMES]
        certificate = self.certificate("localhost", "iam.amazonaws.com", *regional)
        server = serve(self.account.answer, certificate)
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        self._port = server.server_port
        self.lead("*:443", self._port)

    def deploy(self, *options: str) -> None:
        """Make the stack as an administrator does, and start what is in it.

        Without the function where the wheels of its package cannot be had.
        """
        words = ("aws", "deploy", "--stack", STACK, "--yes", *options)
        done = self.run(*words, who="admin", WORKSHOP_STACK="")
        if "could not be had" in done.stderr:
            done = self.run(*words, "--no-function", who="admin", WORKSHOP_STACK="")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        (stack,) = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
        names = [self.outputs["DSQLClusterEndpoint"], self.outputs["DSQLClusterPublicEndpoint"]]
        certificate = self.certificate(*names)
        self.dsql = Dsql(self.account, self._engine, self._owner, certificate, names, REGION)
        self._stack.callback(self.dsql.close)
        self.cache = Cache(str(self.folder), self.certificate(self.outputs["ValkeyEndpoint"]))
        self._stack.callback(self.cache.close)
        self.lead("*.cache.amazonaws.com:6379", self.cache.port)
        self.lead("*.on.aws:5432", self.dsql.port)
        if "LoadFunctionName" in self.outputs:
            self._start_function()

    def _start_function(self) -> None:
        """Run the stack's function, and hand it the messages of the stack's queue."""
        name = self.outputs["LoadFunctionName"]
        made = self.client("lambda").get_function(FunctionName=name)["Configuration"]
        role = made["Role"]
        self.let("function", "ASIASTANDINFUNCTION", self._of_role(role), role=role)
        place = {"Bucket": self.outputs["BucketName"], "Prefix": "setup/load-worker"}
        s3 = self.client("s3")
        (code,) = s3.list_objects_v2(**place)["Contents"]
        packed, task = self.folder / "function.zip", self.folder / "task"
        s3.download_file(place["Bucket"], code["Key"], str(packed))
        zipfile.ZipFile(packed).extractall(task)
        variables = {**self._to_know("function"), **made["Environment"]["Variables"]}
        paths = (NAMES_FOLDER, task)
        self.environments = Environments(made["Handler"], made["Timeout"], variables, paths)
        self._stack.callback(self.environments.close)
        self.function = self.account.function = LambdaService(self.environments, name, most=4)
        self._stack.callback(self.function.close)
        sqs = self.client("sqs", who="function")
        self.mapping = EventSourceMapping(self.function, sqs, self.outputs["QueueUrl"])
        self._stack.callback(self.mapping.close)

    def close(self) -> None:
        self._stack.close()

    def certificate(self, *names: str) -> ssl.SSLContext:
        """What a server of these names shows; `*` stands for one part of a name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["postgresql", "http/1.1"])
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def signed_in(self, who: str = "host") -> dict[str, str]:
        """The environment of a process on this AWS, with the keys of an identity."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
        }
        return {
            **kept,
            **self._to_know(who),
            "PYTHONPATH": str(NAMES_FOLDER),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
            "AWS_REGION": REGION,
            "WORKSHOP_STACK": STACK,
        }

    def _to_know(self, who: str) -> dict[str, str]:
        """Where names lead, which certificates to trust, and an identity's keys."""
        one = self.account.identities[who]
        return {
            "STAND_IN_NAMES": str(self._names),
            "AWS_CA_BUNDLE": str(self.trusted),
            "AWS_ACCESS_KEY_ID": one.key,
            "AWS_SECRET_ACCESS_KEY": one.secret,
            "AWS_SESSION_TOKEN": "",
        }

    def client(self, service: str, region: str = REGION, who: str = "admin") -> Any:
        """A client for the tests themselves, which have no other name service."""
        one = self.account.identities[who]
        return boto3.Session().client(
            service,
            region_name=region,
            endpoint_url=f"https://localhost:{self._port}",
            aws_access_key_id=one.key,
            aws_secret_access_key=one.secret,
            verify=str(self.trusted),
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def policy(self) -> list[dict[str, Any]]:
        """The statements of the notebooks' policy."""
        given = {"PolicyArn": self.outputs["NotebookPolicyArn"], "VersionId": "v1"}
        found = self.client("iam").get_policy_version(**given)
        return found["PolicyVersion"]["Document"]["Statement"]

    def _of_role(self, arn: str) -> list[dict[str, Any]]:
        """The statements of a role's only policy, which moto keeps as Python writes it."""
        iam, name = self.client("iam"), arn.rsplit("/", 1)[1]
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        return ast.literal_eval(document)["Statement"]

    def run(
        self, *words: str, who: str = "host", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `workshop …` as an identity on this AWS, with the stack as its settings."""
        return subprocess.run(
            [sys.executable, "-m", "workshop_lib", *words],
            env=self.signed_in(who) | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def let(self, who: str, key: str, statements: Any = None, **more: Any) -> None:
        """Introduce an identity, or change it."""
        identity = Identity(key, f"secret-of-{who}", statements, **more)
        self.account.identities[who] = identity

    def lead(self, pattern: str, port: int) -> None:
        """Where names lead from now on."""
        self._places[pattern] = port
        beside = self._names.with_suffix(".new")
        places = [[name, ["127.0.0.1", port]] for name, port in self._places.items()]
        beside.write_text(json.dumps(places))
        beside.replace(self._names)

    @contextmanager
    def led(self, pattern: str, port: int) -> Iterator[None]:
        """Have names lead elsewhere for a while."""
        before = self._places[pattern]
        self.lead(pattern, port)
        yield
        self.lead(pattern, before)


def _prepare_moto(patch: pytest.MonkeyPatch) -> None:
    from cloud import moto_resources
    from moto.core.model_instances import reset_model_data
    from moto.sqs.models import Queue

    reset_model_data()
    patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands
    moto_resources.teach(patch)
    # moto would hand messages to functions by itself, in Docker.
    none = property(lambda _: {}, lambda *_: None)
    patch.setattr(Queue, "lambda_event_source_mappings", none, raising=False)
