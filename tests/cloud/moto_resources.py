"""What moto's CloudFormation lacks to make, change and delete the stacks of this repository.

Each resource type below behaves as far as a template can see it. Types that moto knows but leaves
behind when a stack is deleted learn to go.
"""

from __future__ import annotations

import io
import ipaddress
import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

try:
    import openapi_spec_validator  # noqa: F401
except ModuleNotFoundError:
    # moto's CloudFormation loads its API Gateway, which wants this; no stack here has one.
    for name in ("", ".validation", ".validation.exceptions"):
        sys.modules[f"openapi_spec_validator{name}"] = ModuleType("stand-in")
    sys.modules["openapi_spec_validator"].validate = None
    sys.modules["openapi_spec_validator.validation.exceptions"].OpenAPIValidationError = ValueError

from moto import mock_aws
from moto.awslambda.utils import get_backend as lambda_backend
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import UnformattedGetAttTemplateException
from moto.cloudformation.models import CloudFormationBackend, Event, Stack
from moto.cloudformation.responses import CloudFormationResponse
from moto.cloudformation.utils import yaml_tag_constructor
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BaseBackend
from moto.core.common_models import CloudFormationModel
from moto.dsql.models import dsql_backends
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.internet_gateways import InternetGateway, VPCGatewayAttachment
from moto.ec2.models.route_tables import Route, RouteTable
from moto.ec2.models.security_groups import SecurityGroup
from moto.ec2.models.subnets import Subnet, SubnetRouteTableAssociation
from moto.ec2.models.vpcs import VPC, VPCEndPoint
from moto.iam.models import ManagedPolicy, iam_backends
from moto.s3.models import s3_backends
from moto.sqs.models import sqs_backends
from moto.ssm.models import SimpleSystemManagerBackend

IMAGE = "ami-0123456789abcdef0"
"""What stands for Amazon Linux's newest image."""


class Resource(CloudFormationModel):
    """A resource type of ours."""

    kind = ""
    attributes: tuple[str, ...] = ()
    """What `Fn::GetAtt` may ask; the attribute of that name in small letters answers."""

    def __init__(self, properties: dict[str, Any], account: str, region: str) -> None:
        self.properties, self.account, self.region = properties, account, region
        self.physical_resource_id = self.make()

    def make(self) -> str:
        """Bring it into being. Returns what `Ref` gives."""
        raise NotImplementedError

    def change(self) -> None:
        """Do to it what an update with other properties does."""

    def delete(self, *_place: str) -> None:
        """Do away with it."""

    def get_cfn_attribute(self, name: str) -> Any:
        if name not in self.attributes:
            raise UnformattedGetAttTemplateException
        return getattr(self, name.lower().replace(".", "_"))

    @classmethod
    def cloudformation_type(cls) -> str:
        return cls.kind

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return attr in cls.attributes

    @classmethod
    def create_from_cloudformation_json(cls, _name, cloudformation_json, account, region, **_more):
        return cls(cloudformation_json["Properties"], account, region)

    @classmethod
    def update_from_cloudformation_json(cls, original_resource, cloudformation_json, **_more):
        original_resource.properties = cloudformation_json["Properties"]
        original_resource.change()
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, *_) -> None:
        raise AssertionError("an instance is there, and deletes itself")


class Cluster(Resource):
    """A cluster in moto's control plane of Aurora DSQL."""

    kind = "AWS::DSQL::Cluster"
    attributes = ("Endpoint", "Identifier", "ResourceArn", "VpcEndpoint", "VpcEndpointServiceName")

    @property
    def backend(self):
        return dsql_backends[self.account][self.region]

    @property
    def protected(self) -> bool:
        return self.properties.get("DeletionProtectionEnabled") in {True, "true"}

    @property
    def multi_region(self) -> dict[str, Any] | None:
        found = self.properties.get("MultiRegionProperties")
        return found and {
            "witnessRegion": found["WitnessRegion"],
            "clusters": found.get("Clusters", []),
        }

    def make(self) -> str:
        tags = {tag["Key"]: tag["Value"] for tag in self.properties["Tags"]}
        self.cluster = self.backend.create_cluster(
            self.protected, tags, None, multi_region_properties=self.multi_region
        )
        return self.cluster.identifier

    def change(self) -> None:
        self.cluster.deletion_protection_enabled = self.protected
        self.cluster.multi_region_properties = self.multi_region

    def delete(self, *_place: str) -> None:
        self.backend.delete_cluster(self.identifier)  # which only says that it is on its way
        del self.backend.clusters[self.identifier]

    def get_cfn_attribute(self, name: str) -> Any:
        waiting = self.multi_region is not None and not self.multi_region["clusters"]
        if waiting and "ndpoint" in name:
            raise AssertionError(f"{name} of a cluster that waits for its peer")
        return super().get_cfn_attribute(name)

    @property
    def identifier(self) -> str:
        return self.cluster.identifier

    @property
    def resourcearn(self) -> str:
        return self.cluster.arn

    @property
    def endpoint(self) -> str:
        return f"{self.identifier}.dsql.{self.region}.on.aws"

    @property
    def vpcendpointservicename(self) -> str:
        return self.cluster.endpoint_service_name

    @property
    def vpcendpoint(self) -> str:
        suffix = self.vpcendpointservicename.rsplit(".", 1)[1]
        return f"{self.identifier}.{suffix}.{self.region}.on.aws"


class ServerlessCache(Resource):
    """A serverless cache; moto has none, so it exists here only."""

    kind = "AWS::ElastiCache::ServerlessCache"
    attributes = ("ARN", "Endpoint.Address", "Endpoint.Port")
    existing: dict[str, ServerlessCache] = {}  # noqa: RUF012 -- the backend, so to say
    endpoint_port = "6379"

    def make(self) -> str:
        assert self.properties["Engine"] == "valkey"
        self.name = self.properties["ServerlessCacheName"]
        assert self.name not in self.existing
        self.existing[self.name] = self
        return self.name

    def delete(self, *_place: str) -> None:
        del self.existing[self.name]

    @property
    def arn(self) -> str:
        return f"arn:aws:elasticache:{self.region}:{self.account}:serverlesscache:{self.name}"

    @property
    def endpoint_address(self) -> str:
        return f"{self.name}-abc123.serverless.use1.cache.amazonaws.com"


class BucketPolicy(Resource):
    """The policy of a bucket; not in force, because moto does not weigh conditions."""

    kind = "AWS::S3::BucketPolicy"

    def make(self) -> str:
        assert s3_backends[self.account]["aws"].get_bucket(self.properties["Bucket"])
        return f"policy-of-{self.properties['Bucket']}"


class QueuePolicy(Resource):
    """The policy of queues."""

    kind = "AWS::SQS::QueuePolicy"

    def make(self) -> str:
        document = json.dumps(self.properties["PolicyDocument"])
        backend = sqs_backends[self.account][self.region]
        for url in self.properties["Queues"]:
            backend.set_queue_attributes(url.rsplit("/", 1)[1], {"Policy": document})
        return "policy-of-queues"


class Custom(Resource):
    """A custom resource whose function is written out in the template: it is run, right here."""

    kind = "Custom"

    def make(self) -> str:
        return self.send("Create")

    def change(self) -> None:
        assert self.send("Update") == self.physical_resource_id

    def delete(self, *_place: str) -> None:
        self.send("Delete")

    def send(self, request: str) -> str:
        """Have the function do its work. Returns what it calls the resource."""
        function = lambda_backend(self.account, self.region).get_function(
            self.properties["ServiceToken"]
        )
        answers: list[tuple[str, str, str | None]] = []
        answering = ModuleType("cfnresponse")
        answering.SUCCESS, answering.FAILED = "SUCCESS", "FAILED"

        def answer(_event, _context, status, _data, mark, *, reason=None):
            answers.append((status, mark, reason))

        answering.send = answer
        with pytest.MonkeyPatch.context() as patch, _in_this_account():
            patch.setitem(sys.modules, "cfnresponse", answering)
            handler = run_zip(function.code_bytes)["handler"]
            handler(
                {"RequestType": request, "ResourceProperties": self.properties}, SimpleNamespace()
            )
        ((status, mark, reason),) = answers
        if status != "SUCCESS":
            raise RuntimeError(reason)
        return mark


@contextmanager
def _in_this_account() -> Iterator[None]:
    """Have clients of this process speak with moto here, also where moto is a server."""
    emulation = mock_aws()
    emulation.start(reset=False)
    try:
        yield
    finally:
        emulation.stop(remove_data=False)


def run_zip(packed: bytes) -> dict[str, Any]:
    """The names that a function's index.py defines."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names: dict[str, Any] = {}
        exec(archive.read("index.py"), names)  # noqa: S102 -- it is in our own template
        return names


def teach(patch: pytest.MonkeyPatch) -> None:
    """Give moto all of this, and nothing made of it yet, until `patch` is undone."""
    patch.setattr(ServerlessCache, "existing", {})
    known = {**parsing.get_model_map(), **{kind.kind: kind for kind in Resource.__subclasses__()}}
    patch.setattr(parsing, "get_model_map", lambda: known)
    patch.setattr(parsing, "CustomModel", Custom)
    patch.setattr(parsing, "clean_json", _with_more_functions(parsing.clean_json))
    patch.setattr(
        parsing.ResourceMap,
        "build_resource_diff",
        _with_conditions_that_turn(parsing.ResourceMap.build_resource_diff),
    )
    patch.setattr(parsing.ResourceMap, "delete", _delete_in_order)
    for kind, delete in DELETIONS.items():
        patch.setattr(kind, "delete", delete, raising=False)
    patch.setattr(CloudFormationBackend, "execute_change_set", _execute)
    patch.setattr(CloudFormationBackend, "validate_template", _validate)
    # A change set without changes is refused later, by its status.
    patch.setattr(CloudFormationResponse, "_validate_different_update", lambda *_: None)
    patch.setattr(yaml, "Loader", _QuickLoader)
    services = staticmethod(lambda _, region: _endpoint_services(region))
    patch.setattr(EC2Backend, "_collect_default_endpoint_services", services)
    patch.setattr(SimpleSystemManagerBackend, "get_parameter", lambda *_: ImageOfTheDay)
    patch.setattr(Stack, "has_parameters", _has_parameters)
    for region in ("us-east-1", "us-east-2"):
        ec2 = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        patch.setitem(ec2.amis, IMAGE, Ami(ec2, IMAGE))


def _with_more_functions(clean):
    """`Fn::Cidr` and `Fn::GetAZs`."""

    def clean_json(given, resources):
        if isinstance(given, dict) and "Fn::Cidr" in given:
            block, count, bits = (clean(part, resources) for part in given["Fn::Cidr"])
            parts = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
            return [str(part) for part, _ in zip(parts, range(int(count)), strict=False)]
        if given == {"Fn::GetAZs": ""}:  # of the stack's own Region
            return [f"{resources['AWS::Region']}{letter}" for letter in "abc"]
        return clean(given, resources)

    return clean_json


def _with_conditions_that_turn(build):
    """Resources whose condition was false and is now true are new, though the template is not."""

    def build_resource_diff(self, template, parameters=None):
        found = build(self, template, parameters)
        missing = [name for name in template["Resources"] if name not in self._parsed_resources]
        found["Modify"] = [name for name in found["Modify"] if name not in missing]
        found["Add"] = [*found["Add"], *(name for name in missing if name not in found["Add"])]
        return found

    return build_resource_diff


def _execute(self, change_set_name: str, stack_name: str | None = None) -> None:
    """Do what making and updating a stack at once does: moto's own leaves the outputs out."""
    wanted = self.describe_change_set(change_set_name)
    stack = self.stacks[wanted.stack_id]
    had = set(stack.resource_map._parsed_resources)
    if wanted.change_set_type == "CREATE":
        stack.template, stack.parameters = wanted.template, wanted.parameters
        stack._parse_template()
        stack.resource_map = stack._create_resource_map()
        stack.output_map = stack._create_output_map()
        stack._add_stack_event("CREATE_IN_PROGRESS", resource_status_reason="User Initiated")
        stack.create_resources()
    else:
        has = stack.resource_map.resolved_parameters
        changed = {k: v for k, v in wanted.parameters.items() if has.get(k) != v}
        stack.update(wanted.template, parameters={**stack.resource_map.input_parameters, **changed})
    end = stack.events.pop()
    for name, one in stack.template_dict["Resources"].items():
        resource = stack.resource_map._parsed_resources.get(name)
        if resource is not None and name not in had:
            stack.events.append(_event(stack, name, resource, one["Type"], "CREATE_COMPLETE"))
    stack.events.append(end)


def _event(stack, name: str, resource: Any, kind: str, status: str) -> Event:
    mark = str(getattr(resource, "physical_resource_id", name))
    return Event(stack.stack_id, stack.name, name, mark, kind, status, None, None)


class _QuickLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """What moto reads out of a template, ten times as fast."""


_QuickLoader.add_multi_constructor("", yaml_tag_constructor)


ZONES = {"dsql-fnh4": "bcd", "elasticache": "abcdf", "monitoring": "abcdef"}
"""Which zones of a Region have which endpoint service: not the first one all."""


def _endpoint_services(region: str) -> list[dict[str, Any]]:
    """moto's own imports every service that it has."""
    found = []
    for name, letters in ZONES.items():
        zones = [f"{region}{letter}" for letter in letters]
        found += BaseBackend.default_vpc_endpoint_service_factory(region, zones, name)
    return found


class ImageOfTheDay:
    """What Systems Manager names for every parameter."""

    @staticmethod
    def response_object(*_: Any) -> dict[str, str]:
        return {"Name": "image", "Type": "String", "Value": IMAGE}


def _validate(self, template: str) -> list[Any]:
    """Whether it can be read; moto asks cfn-lint, which need not be installed."""
    Stack.parse_template(template)
    return []


def _has_parameters(self, other: dict[str, Any]) -> bool:
    """Parameters that were left out have their defaults."""
    return {**self.resource_map.resolved_parameters, **other} == dict(
        self.resource_map.resolved_parameters
    )


def _delete_in_order(self) -> None:
    """What was made last goes first, as CloudFormation does it."""
    for name in reversed(list(self._parsed_resources)):
        resource = self._parsed_resources[name]
        if name in self._resource_json_map and resource is not None:
            self._delete_resource(resource, self._resource_json_map[name])
            del self._parsed_resources[name]


def _delete_endpoint(self, account, region) -> None:
    del ec2_backends[account][region].vpc_end_points[self.id]


def _delete_policy(self, account, region) -> None:
    iam_backends[account]["aws"].delete_policy(self.arn)


NETWORK = (
    VPC, Subnet, SecurityGroup, InternetGateway, VPCGatewayAttachment, RouteTable, Route,
    SubnetRouteTableAssociation,
)  # fmt: skip
"""What costs nothing: moto leaves some of it behind, and then cannot delete the rest."""
DELETIONS = dict.fromkeys(NETWORK, lambda *_: None) | {
    ManagedPolicy: _delete_policy,
    VPCEndPoint: _delete_endpoint,
}
