"""The workshop's stack, made and changed in moto: no account, no network, every resource."""

import base64
import io
import json
import re
import sys
import zipfile
from datetime import datetime, timedelta
from types import ModuleType, SimpleNamespace

import pytest

from workshop_lib.aws import read_template
from workshop_lib.dataset import Sizes, generators
from workshop_lib.lambda_package import HANDLER

THERE = "us-east-2"


@pytest.fixture
def ec2(cloud):
    return cloud.client("ec2")


@pytest.fixture
def with_function(cloud):
    """Deploy a stack, and once more with the function's code; returns the outputs."""

    def deploy(**given):
        bucket = cloud.deploy("workshop", **given)["BucketName"]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("workshop_lib/load/worker.py", "def handler(event, context): ...")
        cloud.client("s3").put_object(Bucket=bucket, Key="setup/1.zip", Body=packed.getvalue())
        return cloud.deploy("workshop", CodeKey="setup/1.zip", **given)

    return deploy


def groups(ec2, *ids):
    return ec2.describe_security_groups(GroupIds=ids)["SecurityGroups"]


def test_the_outputs_lead_to_what_is_there(cloud, ec2):
    found = cloud.deploy("workshop")
    ids = [found["PrivateSubnet1Id"], found["PrivateSubnet2Id"]]
    subnets = ec2.describe_subnets(SubnetIds=ids)["Subnets"]
    assert [one["CidrBlock"] for one in subnets] == ["10.0.0.0/22", "10.0.4.0/22"]
    assert len({one["AvailabilityZone"] for one in subnets}) == 2
    both = groups(ec2, found["NotebookSecurityGroupId"], found["ValkeySecurityGroupId"])
    assert {one["VpcId"] for one in [*subnets, *both]} == {found["VPCId"]}
    (cluster,) = cloud.client("dsql").list_clusters()["clusters"]
    assert found["DSQLClusterArn"] == cluster["arn"]
    queues = set(cloud.client("sqs").list_queues()["QueueUrls"])
    assert queues == {found["QueueUrl"], found["DeadLetterQueueUrl"]}
    assert cloud.client("iam").get_policy(PolicyArn=found["NotebookPolicyArn"])
    board = cloud.client("cloudwatch").get_dashboard(DashboardName=found["DashboardName"])
    assert "${" not in board["DashboardBody"]


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


def test_the_function_comes_with_its_code_and_its_queue(cloud, with_function):
    found = with_function(FunctionTimeout="60")
    made = cloud.client("lambda").get_function(FunctionName=found["LoadFunctionName"])
    function = made["Configuration"]
    assert (function["Handler"], function["Runtime"]) == (HANDLER, "python3.12")
    assert function["Environment"]["Variables"] == {
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


def test_the_function_reads_elsewhere_and_publishes_no_metrics_where_it_is_told_so(
    cloud, ec2, with_function
):
    reader = f"{'r' * 26}.dsql.{THERE}.on.aws"
    found = with_function(MetricsEndpoint="none", ReadEndpoint=reader, HostType="none")
    made = cloud.client("lambda").get_function(FunctionName=found["LoadFunctionName"])
    variables = made["Configuration"]["Environment"]["Variables"]
    assert ("QUEUE_URL" in variables, variables["DSQL_READ_ENDPOINT"]) == (False, reader)
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert not [one for one in endpoints if one["ServiceName"].endswith("monitoring")]


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
