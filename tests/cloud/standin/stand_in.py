"""A stand-in for AWS on this machine: everything the workshop's stack has, under AWS's own names.

Real: PostgreSQL (which keeps DSQL's rules), Valkey in cluster mode, TLS with certificates that are
verified, tokens whose signature is checked, policies that are weighed. Emulated by moto: the other
services. The package notices nothing of it, and takes the same path as on AWS.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import redis
from authority import Authority
from botocore.config import Config

sys.path.append(str(Path(__file__).parent.parent.parent / "load"))
from lambda_runtime import EventSourceMapping, LambdaService, unpack

HERE = Path(__file__).parent
REGION = "us-east-1"
OTHER_REGION = "us-east-2"
STACK = "cache-aside-workshop"
NAMESPACE = "cloud"
ADMIN = {"key": "AKIASTANDINADMIN", "secret": "secret-of-the-admin"}
HOST = {"key": "ASIASTANDINHOST", "secret": "secret-of-the-host"}
LAMBDA = {"key": "ASIASTANDINFUNCTION", "secret": "secret-of-the-function"}
PORTS = {"*.on.aws:5432": "dsql", "*.cache.amazonaws.com:6379": "elasticache", "*:443": "aws"}
NAMES = (
    "iam.amazonaws.com",
    *(
        name.format(region=region)
        for region in (REGION, OTHER_REGION)
        for name in (
            "*.{region}.amazonaws.com",
            "*.s3.{region}.amazonaws.com",
            "*.{region}.api.aws",
            "*.dsql.{region}.on.aws",
        )
    ),
)


class StandIn:
    """The servers of the stand-in, running.

    Args:
        folder: for certificates and lists.
        engine: arguments of psycopg2 by which the local PostgreSQL is reached.

    """

    def __init__(self, folder: Path, engine: dict[str, Any]) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self.authority = Authority(folder)
        self._identities = folder / "identities.json"
        self._names = folder / "names.json"
        self._ports: dict[str, tuple[str, int]] = {}
        self._cut: dict[str, tuple[str, int] | None] = {}
        self.identities: dict[str, dict[str, Any]] = {"admin": dict(ADMIN)}
        self._write_identities()
        self._start("aws", self.authority.sign("aws", "localhost", *NAMES))
        self._lead()
        self.outputs: dict[str, str] = {}
        self._engine = engine

    def deploy(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Make or change the stack as an administrator does."""
        words = ("aws", "deploy", "--stack", STACK, "--yes", *options)
        return self.run(*words, who="admin", WORKSHOP_STACK="")

    def start_services(self) -> None:
        """Start what the stack has, under the names that it was given."""
        self._read_outputs()
        names = [self.outputs["DSQLClusterEndpoint"], self.outputs["DSQLClusterPublicEndpoint"]]
        self._start("dsql", self.authority.sign("dsql", *names), engine=self._engine)
        cache = self.authority.sign("elasticache", self.outputs["ValkeyEndpoint"])
        self._start("elasticache", cache)
        self._lead()

    def start_function(self) -> None:
        """Run the stack's function, and hand it the messages of the stack's queue."""
        self._read_outputs()
        name = self.outputs["LoadFunctionName"]
        made = self.client("lambda").get_function(FunctionName=name)["Configuration"]
        self.let("function", **LAMBDA, statements=self.role(made["Role"].rsplit("/", 1)[1]))
        code = self.client("s3").get_object(Bucket=self.outputs["BucketName"], Key=self.code_key)
        packed = self.folder / "function.zip"
        packed.write_bytes(code["Body"].read())
        function = LambdaService(
            unpack(packed, self.folder / "task"),
            self.folder,
            {**self._to_know("function"), **made["Environment"]["Variables"]},
            handler=made["Handler"],
            timeout_s=made["Timeout"],
            most=4,
            paths=[HERE / "names"],
            preload="sitecustomize",
            name=name,
        )
        self._stack.callback(function.close)
        (mapping,) = self.client("lambda").list_event_source_mappings()["EventSourceMappings"]
        assert mapping["State"] == "Enabled"
        queue = self.outputs["QueueUrl"]
        source = EventSourceMapping(function, self.client("sqs", who="function"), queue)
        self._stack.callback(source.close)
        self.function, self.mapping = function, source
        (self.folder / "functions.url").write_text(function.url)

    def close(self) -> None:
        self._stack.close()

    def signed_in(self, who: str = "host") -> dict[str, str]:
        """The environment of a process on this AWS, as somebody who is signed in."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
        }
        path = [str(HERE / "names"), os.environ.get("PYTHONPATH", "")]
        return {
            **kept,
            **self._to_know(who),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
            "AWS_REGION": REGION,
        }

    def _to_know(self, who: str) -> dict[str, str]:
        """Where names lead, whose certificates are good, and the keys of somebody."""
        one = self.identities[who]
        return {
            "STAND_IN_NAMES": str(self._names),
            "AWS_CA_BUNDLE": str(self.authority.file),
            "AWS_ACCESS_KEY_ID": one["key"],
            "AWS_SECRET_ACCESS_KEY": one["secret"],
            "AWS_SESSION_TOKEN": "",
        }

    def client(self, service: str, region: str = REGION, who: str = "admin") -> Any:
        """A client for the tests themselves, which have no other name service."""
        _, port = self._ports["aws"]
        one = self.identities[who]
        return boto3.Session().client(
            service,
            region_name=region,
            endpoint_url=f"https://localhost:{port}",
            aws_access_key_id=one["key"],
            aws_secret_access_key=one["secret"],
            verify=str(self.authority.file),
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def keys(self, pattern: str) -> list[bytes]:
        """The keys in the cache that match a pattern."""
        with self._cache() as client:
            return list(client.scan_iter(match=pattern))

    def impostor(self, name: str, host: str) -> tuple[str, int]:
        """A server like one of ours, whose certificate is for another host."""
        usual = self._ports[name]
        self._start(name, self.authority.sign("impostor", host), engine=self._engine)
        strange, self._ports[name] = self._ports[name], usual
        return strange

    def policy(self, output: str) -> list[dict[str, Any]]:
        """The statements of the policy whose ARN is an output of the stack."""
        arn = self.outputs[output]
        found = self.client("iam").get_policy_version(PolicyArn=arn, VersionId="v1")
        return found["PolicyVersion"]["Document"]["Statement"]

    def role(self, name: str) -> list[dict[str, Any]]:
        """The statements of the policies that a role has of its own."""
        iam = self.client("iam")
        found = []
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            # moto keeps what a template says as Python writes it.
            found += ast.literal_eval(document)["Statement"]
        return found

    @property
    def code_key(self) -> str:
        """Where the function's code is in the bucket."""
        (stack,) = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        given = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
        return given["CodeKey"]

    def run(
        self, *words: str, who: str = "host", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `workshop …` as somebody on this AWS, with the stack as its settings."""
        return subprocess.run(
            [sys.executable, "-m", "workshop_lib", *words],
            env={**self.signed_in(who), "WORKSHOP_STACK": STACK, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def let(self, who: str, **what: Any) -> None:
        """Introduce somebody, or change what holds for them."""
        self.identities.setdefault(who, {}).update(what)
        self._write_identities()

    def lead(self, pattern: str, place: tuple[str, int] | None) -> None:
        """Have names lead elsewhere, until told None."""
        self._cut[pattern] = place
        self._lead()

    def _read_outputs(self) -> None:
        (stack,) = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}

    def _cache(self) -> redis.Redis:
        """A client of the tests themselves, which have no other name service."""
        _, port = self._ports["elasticache"]
        return redis.Redis(
            "localhost",
            port,
            ssl=True,
            ssl_ca_certs=str(self.authority.file),
            ssl_check_hostname=False,
        )

    def _start(self, name: str, identity: Any, **more: Any) -> None:
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{name}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = {
            "certificate": str(identity.certificate),
            "key": str(identity.key),
            "identities": str(self._identities),
            "functions": str(self.folder / "functions.url"),
            "regions": [REGION, OTHER_REGION],
            **more,
        }
        self._stack.callback(_end, process)
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        self._ports[name] = ("127.0.0.1", int(process.stdout.readline()))

    def _lead(self) -> None:
        cut = [[pattern, place] for pattern, place in self._cut.items() if place]
        usual = [[p, self._ports[name]] for p, name in PORTS.items() if name in self._ports]
        _replace(self._names, cut + usual)

    def _write_identities(self) -> None:
        _replace(self._identities, list(self.identities.values()))


def _end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def _replace(file: Path, content: Any) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(content))
    beside.replace(file)
