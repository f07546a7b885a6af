"""The workshop's stack, made and changed in moto: no account, no network, every resource."""

import base64
import json
import re
import sys
from datetime import datetime, timedelta
from types import ModuleType, SimpleNamespace

import pytest

from workshop_lib.aws.lambda_package import HANDLER
from workshop_lib.aws.stacks import read_template
from workshop_lib.dataset import Sizes, generators

THERE = "us-east-2"


@pytest.fixture
def ec2(cloud):
    return cloud.client("ec2")


def groups(ec2, *ids):
    return ec2.describe_security_groups(GroupIds=ids)["SecurityGroups"]


def test_nothing_reaches_the_host_which_knows_its_stack_and_bucket(cloud, ec2):
    found = cloud.deploy("workshop")
    host = found["NotebookHostId"]
    (made,) = ec2.describe_instances(InstanceIds=[host])["Reservations"][0]["Instances"]
    assert made["SubnetId"] not in {found["PrivateSubnet1Id"], found["PrivateSubnet2Id"]}
    assert groups(ec2, found["NotebookSecurityGroupId"])[0]["IpPermissions"] == []
    told = ec2.describe_instance_attribute(InstanceId=host, Attribute="userData")
    script = base64.b64decode(told["UserData"]["Value"]).decode()
    assert script.startswith("#!/bin/bash\n")
    assert re.search(r"^export WORKSHOP_STACK=workshop #", script, re.MULTILINE)
    assert f"s3://{found['BucketName']}/setup/workshop.tar.gz" in script
    board = cloud.client("cloudwatch").get_dashboard(DashboardName=found["DashboardName"])
    assert "${" not in board["DashboardBody"]


def test_the_function_comes_with_its_code_and_its_queue(cloud):
    bucket = cloud.deploy("workshop")["BucketName"]
    cloud.client("s3").put_object(Bucket=bucket, Key="setup/1.zip", Body=b"code")
    given = {"CodeKey": "setup/1.zip", "FunctionTimeout": "60"}
    found = cloud.deploy("workshop", **given)
    named = {"FunctionName": found["LoadFunctionName"]}
    function = cloud.client("lambda").get_function(**named)["Configuration"]
    assert (function["Handler"], function["Runtime"]) == (HANDLER, "python3.12")
    told = function["Environment"]["Variables"]
    assert told == {
        "DSQL_ENDPOINT": found["DSQLClusterEndpoint"],
        "DATABASE_NAME": "postgres",
        "IAM_USERNAME": "workshop",
        "AURORA_DSQL_PORT": "5432",
        "LOG_LEVEL": "info",
        "VALKEY_ENDPOINT": found["ValkeyEndpoint"],
        "QUEUE_URL": found["QueueUrl"],
        "WORKSHOP_NAMESPACE": "workshop",
    }
    subnets = {found["PrivateSubnet1Id"], found["PrivateSubnet2Id"]}
    assert set(function["VpcConfig"]["SubnetIds"]) == subnets
    asked = {"QueueUrl": found["QueueUrl"], "AttributeNames": ["All"]}
    queue = cloud.client("sqs").get_queue_attributes(**asked)["Attributes"]
    assert int(queue["VisibilityTimeout"]) >= 6 * int(function["Timeout"]) == 360
    assert json.loads(queue["RedrivePolicy"])["maxReceiveCount"] == 3
    (mapping,) = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["EventSourceArn"] == queue["QueueArn"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert int(mapping["ScalingConfig"]["MaximumConcurrency"]) == 5  # a new account has ten
    # It reads elsewhere, and publishes no metrics, where it is told so.
    reader = f"{'r' * 26}.dsql.{THERE}.on.aws"
    cloud.deploy("workshop", **given, MetricsEndpoint="none", ReadEndpoint=reader)
    told = cloud.client("lambda").get_function(**named)["Configuration"]["Environment"]["Variables"]
    assert ("QUEUE_URL" in told, told["DSQL_READ_ENDPOINT"]) == (False, reader)


def test_a_stack_fits_into_a_network_that_is_there(cloud, ec2):
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    blocks = [{"VpcId": vpc, "CidrBlock": f"10.9.{i}.0/24"} for i in range(3)]
    subnets = [ec2.create_subnet(**one)["Subnet"]["SubnetId"] for one in blocks]
    mine = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
    names = ("ExistingSubnet1", "ExistingSubnet2", "ExistingHostSubnet")
    before = len(ec2.describe_vpcs()["Vpcs"]), len(ec2.describe_subnets()["Subnets"])
    given = dict(zip(names, subnets, strict=True))
    found = cloud.deploy("workshop", VpcId=vpc, ClientSecurityGroup=mine, **given)
    used = [found[name] for name in ("VPCId", "PrivateSubnet1Id", "PrivateSubnet2Id")]
    assert used == [vpc, *subnets[:2]]
    assert found["NotebookSecurityGroupId"] == mine
    assert (len(ec2.describe_vpcs()["Vpcs"]), len(ec2.describe_subnets()["Subnets"])) == before
    (group,) = groups(ec2, found["ValkeySecurityGroupId"])
    allowed = {
        one["GroupId"] for rule in group["IpPermissions"] for one in rule["UserIdGroupPairs"]
    }
    assert allowed == {mine}


# --- the caretaker


class Caretaker:
    """The function that is written out in the template, run here."""

    def __init__(self, monkeypatch):
        self.answers = []
        answering = ModuleType("cfnresponse")
        answering.SUCCESS, answering.FAILED = "SUCCESS", "FAILED"
        answering.send = lambda *answer, reason="": self.answers.append((*answer[2:], reason))
        monkeypatch.setitem(sys.modules, "cfnresponse", answering)
        self.names = {}
        function = read_template("workshop")["Resources"]["Caretaker"]["Properties"]
        exec(function["Code"]["ZipFile"], self.names)  # noqa: S102 -- it is in our own template

    def asked_to(self, request, bucket):
        """Send what CloudFormation sends; returns the answer."""
        given = {
            "RequestType": request,
            "ResourceProperties": {"Bucket": bucket, "Prefix": "ours/"},
        }
        self.names["handler"](given, None)
        return self.answers[-1]


@pytest.fixture
def caretaker(monkeypatch):
    return Caretaker(monkeypatch)


def test_the_caretaker_fills_a_bucket_with_what_notebook_01_loads_and_empties_it(cloud, caretaker):
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="new")
    assert caretaker.asked_to("Create", "new") == ("SUCCESS", {}, "objects-of-new", "")
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="new")["Contents"]]
    held = {key: s3.get_object(Bucket="new", Key=key)["Body"].read() for key in keys}
    wanted = generators.objects(Sizes().objects, Sizes().seed)
    assert held == {f"ours/{name}": body for name, body in wanted}
    assert caretaker.asked_to("Update", "new")[0] == "SUCCESS"
    assert s3.list_objects_v2(Bucket="new")["KeyCount"] == len(held)
    for number in range(1_001):  # more than one page, and than one deletion takes
        cloud.moto("s3", "aws").put_object("new", f"more/{number}", b"data")
    assert caretaker.asked_to("Delete", "new")[0] == "SUCCESS"
    assert s3.list_objects_v2(Bucket="new")["KeyCount"] == 0
    s3.delete_bucket(Bucket="new")
    assert caretaker.asked_to("Delete", "new")[0] == "SUCCESS"


@pytest.mark.parametrize(("age", "over"), [(71, False), (73, True)])
def test_after_its_days_a_stack_stops_what_costs_by_the_hour_and_keeps_what_was_written(
    cloud, ec2, caretaker, age, over
):
    found = cloud.deploy("workshop")
    events, gone = cloud.client("events"), []
    (rule,) = events.list_rules()["Rules"]
    assert rule["ScheduleExpression"] == "rate(1 hour)"
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
    (stack,) = cloud.client("cloudformation").describe_stacks()["Stacks"]

    class Now(datetime):
        @classmethod
        def now(cls, _zone):
            return stack["CreationTime"] + timedelta(hours=age)

    def client(service):
        if service == "elasticache":  # moto has no serverless caches
            return SimpleNamespace(delete_serverless_cache=lambda **given: gone.append(given))
        return cloud.client(service)

    caretaker.names.update(datetime=Now, boto3=SimpleNamespace(client=client))
    caretaker.names["handler"](json.loads(target["Input"]), None)
    host = ec2.describe_instances(InstanceIds=[found["NotebookHostId"]])["Reservations"][0]
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    states = {one["State"] for one in endpoints if one["VpcEndpointType"] == "Interface"}
    assert host["Instances"][0]["State"]["Name"] == ("stopped" if over else "running")
    assert states == ({"deleted"} if over else {"available"})
    assert [one["ServerlessCacheName"][:12] for one in gone] == ["cache-aside-"] * over
    assert len(cloud.client("dsql").list_clusters()["clusters"]) == 1
