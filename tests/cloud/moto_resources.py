"""What moto's CloudFormation lacks to make, change and delete the stacks of this repository."""

from __future__ import annotations

import ipaddress
import sys
from copy import deepcopy
from functools import cache
from types import ModuleType
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

from moto import mock_aws  # noqa: F401 -- only from here, after the module above
from moto.cloudformation import parsing
from moto.cloudformation.models import CloudFormationBackend, Stack
from moto.cloudformation.responses import CloudFormationResponse
from moto.cloudformation.utils import yaml_tag_constructor
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BaseBackend
from moto.core.common_models import CloudFormationModel
from moto.dsql.models import dsql_backends
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.amis import Ami
from moto.ssm.models import SimpleSystemManagerBackend

IMAGE = "ami-0123456789abcdef0"
"""What stands for Amazon Linux's newest image."""
ZONES = {"dsql-fnh4": "bcd", "elasticache": "abcdf", "monitoring": "abcdef"}
"""Which zones of a Region have which endpoint service: not the first one all."""


class Resource(CloudFormationModel):
    """A resource type of ours: `Fn::GetAtt` finds an attribute of the same name in small letters.

    As it stands, one that nothing depends on, such as a policy.
    """

    def __init__(self, name: str, properties: dict[str, Any], account: str, region: str) -> None:
        self.physical_resource_id, self.region, self.account = name, region, account
        self.update(properties)

    def update(self, properties: dict[str, Any]) -> None:
        """Take what the template says now."""

    def get_cfn_attribute(self, name: str) -> Any:
        return getattr(self, name.lower().replace(".", "_"))

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @classmethod
    def has_cfn_attr(cls, _attr: str) -> bool:
        return True

    @classmethod
    def create_from_cloudformation_json(cls, name, cloudformation_json, account, region, **_more):
        return cls(name, cloudformation_json["Properties"], account, region)

    @classmethod
    def update_from_cloudformation_json(cls, original_resource, cloudformation_json, **_more):
        original_resource.update(cloudformation_json["Properties"])
        return original_resource


class Cluster(Resource):
    """A cluster in moto's control plane of Aurora DSQL."""

    def __init__(self, _name: str, properties: dict[str, Any], account: str, region: str) -> None:
        backend = dsql_backends[account][region]
        self.cluster = backend.create_cluster(False, {}, None)
        super().__init__(self.cluster.identifier, properties, account, region)
        self.identifier, self.resourcearn = self.cluster.identifier, self.cluster.arn
        self.vpcendpointservicename = self.cluster.endpoint_service_name
        suffix = self.vpcendpointservicename.rsplit(".", 1)[1]
        self.vpcendpoint = f"{self.identifier}.{suffix}.{region}.on.aws"
        self.endpoint = f"{self.identifier}.dsql.{region}.on.aws"

    def update(self, properties: dict[str, Any]) -> None:
        self.cluster.deletion_protection_enabled = properties["DeletionProtectionEnabled"] == "true"
        regions = properties.get("MultiRegionProperties", {})
        self.waits = bool(regions) and not regions.get("Clusters")

    def get_cfn_attribute(self, name: str) -> Any:
        assert not (self.waits and "ndpoint" in name), f"{name} of a cluster without its peer"
        return super().get_cfn_attribute(name)


class ServerlessCache(Resource):
    """A serverless cache; moto has none, so it exists here only."""

    endpoint_port = "6379"

    def update(self, properties: dict[str, Any]) -> None:
        assert properties["Engine"] == "valkey"
        name, region = properties["ServerlessCacheName"], self.region
        self.arn = f"arn:aws:elasticache:{region}:{self.account}:serverlesscache:{name}"
        self.endpoint_address = f"{name}-abc123.serverless.use1.cache.amazonaws.com"
        self.physical_resource_id = name


KINDS = {
    "AWS::DSQL::Cluster": Cluster,
    "AWS::ElastiCache::ServerlessCache": ServerlessCache,
    "AWS::S3::BucketPolicy": Resource,
    "AWS::SQS::QueuePolicy": Resource,
}


def teach(patch: pytest.MonkeyPatch) -> None:
    """Give moto all of this until `patch` is undone."""
    known = {**parsing.get_model_map(), **KINDS}
    patch.setattr(parsing, "get_model_map", lambda: known)
    patch.setattr(parsing, "CustomModel", Resource)
    patch.setattr(parsing, "clean_json", _with_cidr(parsing.clean_json))
    build = parsing.ResourceMap.build_resource_diff
    patch.setattr(parsing.ResourceMap, "build_resource_diff", _with_conditions_that_turn(build))
    # Resources of a deleted stack may stay: each test has an account of its own.
    patch.setattr(parsing.ResourceMap, "delete", lambda _: None)
    patch.setattr(CloudFormationBackend, "execute_change_set", _execute)
    # moto asks cfn-lint, which reads a template for seconds.
    patch.setattr(CloudFormationBackend, "validate_template", lambda *_: [])
    # A change set without changes is refused later, by its status.
    patch.setattr(CloudFormationResponse, "_validate_different_update", lambda *_: None)
    patch.setattr(Stack, "has_parameters", lambda stack, wanted: not _changed(stack, wanted))
    read = staticmethod(lambda template: deepcopy(_parse(template)))
    patch.setattr(Stack, "parse_template", read)
    services = staticmethod(lambda _, region: _endpoint_services(region))
    patch.setattr(EC2Backend, "_collect_default_endpoint_services", services)
    patch.setattr(SimpleSystemManagerBackend, "get_parameter", lambda *_: ImageOfTheDay)
    for region in ("us-east-1", "us-east-2"):
        ec2 = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        patch.setitem(ec2.amis, IMAGE, Ami(ec2, IMAGE))


def _with_cidr(clean):
    def clean_json(given, resources):
        if not (isinstance(given, dict) and "Fn::Cidr" in given):
            return clean(given, resources)
        block, count, bits = (clean(part, resources) for part in given["Fn::Cidr"])
        parts = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
        return [str(next(parts)) for _ in range(int(count))]

    return clean_json


def _with_conditions_that_turn(build):
    """Resources whose condition was false and is now true are new, though the template is not."""

    def build_resource_diff(self, template, parameters=None):
        found = build(self, template, parameters)
        missing = [name for name in template["Resources"] if name not in self._parsed_resources]
        found["Modify"] = [name for name in found["Modify"] if name not in missing]
        found["Add"] = missing
        return found

    return build_resource_diff


def _execute(self, change_set_name: str, stack_name: str | None = None) -> None:
    """Do what making and updating a stack at once does: moto's own leaves the outputs out."""
    wanted = self.describe_change_set(change_set_name)
    stack = self.stacks[wanted.stack_id]
    if wanted.change_set_type == "UPDATE":
        changed = _changed(stack, wanted.parameters)
        stack.update(wanted.template, parameters=stack.resource_map.input_parameters | changed)
        return
    stack.template, stack.parameters = wanted.template, wanted.parameters
    stack._parse_template()
    stack.resource_map = stack._create_resource_map()
    stack.output_map = stack._create_output_map()
    stack.create_resources()


def _changed(stack: Stack, wanted: dict[str, Any]) -> dict[str, Any]:
    """Parameters with another value than the stack has; those left out keep theirs."""
    has = stack.resource_map.resolved_parameters
    return {name: value for name, value in wanted.items() if str(has[name]) != str(value)}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """What moto reads out of a template, ten times as fast."""


_Loader.add_multi_constructor("", yaml_tag_constructor)


@cache
def _parse(template: str) -> dict[str, Any]:
    return yaml.load(template, _Loader)  # noqa: S506 -- a SafeLoader


def _endpoint_services(region: str) -> list[dict[str, Any]]:
    """Those of `ZONES`; moto's own imports every service that it has."""
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
