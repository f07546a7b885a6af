"""The stacks, made, changed and deleted in moto: no account, no network, every resource."""

import base64
import io
import json
import re
import sys
import zipfile
from datetime import datetime, timedelta
from types import ModuleType, SimpleNamespace

import pytest

from workshop_lib.dataset import Sizes, generators
from workshop_lib.lambda_package import HANDLER

HERE = "us-east-1"
THERE = "us-east-2"


def code():
    """A zip that stands for the load worker."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("workshop_lib/load/worker.py", "def handler(event, context): ...")
    return packed.getvalue()


def network(ec2):
    """How many networks, subnets and security groups there are."""
    return [
        len(ec2.describe_vpcs()["Vpcs"]),
        len(ec2.describe_subnets()["Subnets"]),
        len(ec2.describe_security_groups()["SecurityGroups"]),
    ]


def test_a_stack_as_it_comes(cloud, clean_environment):
    """Looked at from all sides, because it takes seconds to make one."""
    found = cloud.deploy("workshop", Namespace="ours")
    the_outputs_name_what_is_there(cloud, found)
    the_host_is_reached_by_nobody_and_knows_where_the_services_are(cloud, found)
    assert (
        "${"
        not in cloud.client("cloudwatch").get_dashboard(DashboardName=found["DashboardName"])[
            "DashboardBody"
        ]
    )
    two_endpoints_are_paid_for_and_the_private_subnets_lead_nowhere_else(cloud, found)
    the_bucket_holds_what_notebook_01_loads(cloud, found)


def the_outputs_name_what_is_there(cloud, found):
    ec2, iam = cloud.client("ec2"), cloud.client("iam")
    subnets = ec2.describe_subnets(
        SubnetIds=[found["PrivateSubnet1Id"], found["PrivateSubnet2Id"]]
    )["Subnets"]
    assert {subnet["VpcId"] for subnet in subnets} == {found["VPCId"]}
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == 2
    assert [subnet["CidrBlock"] for subnet in subnets] == ["10.0.0.0/22", "10.0.4.0/22"]
    groups = ec2.describe_security_groups(
        GroupIds=[found["NotebookSecurityGroupId"], found["ValkeySecurityGroupId"]]
    )["SecurityGroups"]
    assert {group["VpcId"] for group in groups} == {found["VPCId"]}
    (cluster,) = cloud.client("dsql").list_clusters()["clusters"]
    assert found["DSQLClusterArn"] == cluster["arn"]
    queues = set(cloud.client("sqs").list_queues()["QueueUrls"])
    assert queues == {found["QueueUrl"], found["DeadLetterQueueUrl"]}
    (board,) = cloud.client("cloudwatch").list_dashboards()["DashboardEntries"]
    assert found["DashboardName"] == board["DashboardName"]
    assert iam.get_policy(PolicyArn=found["NotebookPolicyArn"])


def the_host_is_reached_by_nobody_and_knows_where_the_services_are(cloud, found):
    ec2 = cloud.client("ec2")
    (reserved,) = ec2.describe_instances(InstanceIds=[found["NotebookHostId"]])["Reservations"]
    (host,) = reserved["Instances"]
    assert host["SubnetId"] not in {found["PrivateSubnet1Id"], found["PrivateSubnet2Id"]}
    assert host["InstanceType"] == "t4g.small"
    (group,) = ec2.describe_security_groups(GroupIds=[found["NotebookSecurityGroupId"]])[
        "SecurityGroups"
    ]
    assert group["IpPermissions"] == []
    told = ec2.describe_instance_attribute(
        InstanceId=found["NotebookHostId"], Attribute="userData"
    )["UserData"]["Value"]
    script = base64.b64decode(told).decode()
    assert script.startswith("#!/bin/bash\n")
    # Its outputs say the rest, also that of the function, which comes in a second step.
    assert re.search(r"^export WORKSHOP_STACK=[a-z-]+ #", script, re.MULTILINE)
    assert f"s3://{found['BucketName']}/setup/workshop.tar.gz" in script


def two_endpoints_are_paid_for_and_the_private_subnets_lead_nowhere_else(cloud, found):
    ec2 = cloud.client("ec2")
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [found["VPCId"]]}])
    routes = [route for table in tables["RouteTables"] for route in table["Routes"]]
    (outside,) = [route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
    assert outside["GatewayId"].startswith("igw-")
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    kinds = {e["ServiceName"].rsplit(".", 1)[1].split("-")[0]: e["VpcEndpointType"]
             for e in endpoints}  # fmt: skip
    assert kinds == {"s3": "Gateway", "dsql": "Interface", "monitoring": "Interface"}


def the_bucket_holds_what_notebook_01_loads(cloud, found):
    s3 = cloud.client("s3")
    keys = s3.list_objects_v2(Bucket=found["BucketName"])["Contents"]
    held = {one["Key"]: s3.get_object(Bucket=found["BucketName"], Key=one["Key"])["Body"].read()
            for one in keys}  # fmt: skip
    sizes = Sizes()
    wanted = generators.objects(sizes.objects, sizes.seed)
    assert held == {f"ours/{name}": body for name, body in wanted}


def test_the_function_comes_with_its_code_and_its_queue(cloud):
    bucket = cloud.deploy("workshop")["BucketName"]
    cloud.client("s3").put_object(Bucket=bucket, Key="setup/worker-1.zip", Body=code())
    given = {"CodeKey": "setup/worker-1.zip", "FunctionTimeout": "60"}
    found = cloud.deploy("workshop", **given)
    made = cloud.client("lambda").get_function(FunctionName=found["LoadFunctionName"])
    function = made["Configuration"]
    assert function["Handler"] == HANDLER
    assert function["Runtime"] == "python3.12"
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
    assert set(function["VpcConfig"]["SubnetIds"]) == {
        found["PrivateSubnet1Id"],
        found["PrivateSubnet2Id"],
    }
    queue = cloud.client("sqs").get_queue_attributes(
        QueueUrl=found["QueueUrl"], AttributeNames=["All"]
    )["Attributes"]
    assert int(queue["VisibilityTimeout"]) >= 6 * int(function["Timeout"]) == 360
    assert json.loads(queue["RedrivePolicy"])["maxReceiveCount"] == 3
    assert queue["SqsManagedSseEnabled"] == "true"
    assert '"aws:SecureTransport": "false"' in queue["Policy"]
    (mapping,) = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["EventSourceArn"] == queue["QueueArn"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert int(mapping["ScalingConfig"]["MaximumConcurrency"]) == 5  # a new account has ten
    role, iam = found["FunctionRoleArn"].rsplit("/", 1)[1], cloud.client("iam")
    policy = iam.get_role_policy(RoleName=role, PolicyName="load-worker")["PolicyDocument"]
    assert "cluster/'" not in str(policy)  # of no other endpoint


def test_the_function_reads_elsewhere_and_publishes_no_metrics_where_it_is_told_so(cloud):
    reader = f"{'r' * 26}.dsql.{THERE}.on.aws"
    given = {"MetricsEndpoint": "none", "ReadEndpoint": reader, "HostType": "none"}
    bucket = cloud.deploy("workshop", **given)["BucketName"]
    cloud.client("s3").put_object(Bucket=bucket, Key="setup/worker-1.zip", Body=code())
    found = cloud.deploy("workshop", **given, CodeKey="setup/worker-1.zip")
    made = cloud.client("lambda").get_function(FunctionName=found["LoadFunctionName"])
    variables = made["Configuration"]["Environment"]["Variables"]
    assert ("QUEUE_URL" in variables, variables["DSQL_READ_ENDPOINT"]) == (False, reader)
    endpoints = cloud.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
    assert not [one for one in endpoints if one["ServiceName"].endswith("monitoring")]


def test_an_update_changes_what_it_names_and_leaves_the_rest(cloud):
    before = cloud.deploy("workshop")
    s3 = cloud.client("s3")
    s3.put_object(Bucket=before["BucketName"], Key="kept", Body=b"data")
    after = cloud.deploy("workshop", DeletionProtection="true", MaxReceives="5")
    assert after == before
    assert s3.get_object(Bucket=after["BucketName"], Key="kept")["Body"].read() == b"data"
    (cluster,) = cloud.client("dsql").list_clusters()["clusters"]
    found = cloud.client("dsql").get_cluster(identifier=cluster["identifier"])
    assert found["deletionProtectionEnabled"] is True


def test_a_stack_fits_into_a_network_that_is_there(cloud):
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{i}.0/24")["Subnet"]["SubnetId"]
        for i in range(3)
    ]
    mine = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
    names = ("ExistingSubnet1", "ExistingSubnet2", "ExistingHostSubnet")
    before = network(ec2)
    given = dict(zip(names, subnets, strict=True))
    found = cloud.deploy("workshop", VpcId=vpc, ClientSecurityGroup=mine, **given)
    assert [found[name] for name in ("VPCId", "PrivateSubnet1Id", "PrivateSubnet2Id")] == [
        vpc, *subnets[:2]
    ]  # fmt: skip
    assert found["NotebookSecurityGroupId"] == mine
    assert [now - then for now, then in zip(network(ec2), before, strict=True)] == [0, 0, 1]
    (group,) = ec2.describe_security_groups(GroupIds=[found["ValkeySecurityGroupId"]])[
        "SecurityGroups"
    ]
    asking = {
        pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    }
    assert asking == {mine}


@pytest.mark.parametrize(("age", "over"), [(71, False), (73, True)])
def test_after_its_days_a_stack_stops_what_costs_by_the_hour_and_keeps_what_was_written(
    cloud, monkeypatch, age, over
):
    found = cloud.deploy("workshop")
    (rule,) = cloud.client("events").list_rules()["Rules"]
    assert rule["ScheduleExpression"] == "rate(1 hour)"
    (target,) = cloud.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    (stack,) = cloud.client("cloudformation").describe_stacks(StackName="workshop")["Stacks"]
    gone = []
    monkeypatch.setitem(sys.modules, "cfnresponse", ModuleType("cfnresponse"))
    caretaker = cloud.resources.run_zip(cloud.moto("lambda").get_function(target["Arn"]).code_bytes)

    class Now(datetime):
        @classmethod
        def now(cls, _zone):
            return stack["CreationTime"] + timedelta(hours=age)

    def client(service):
        if service == "elasticache":  # moto has no serverless caches
            delete = lambda **given: gone.append(given["ServerlessCacheName"])  # noqa: E731
            return SimpleNamespace(delete_serverless_cache=delete)
        return cloud.client(service)

    caretaker["handler"].__globals__.update(datetime=Now, boto3=SimpleNamespace(client=client))
    caretaker["handler"](json.loads(target["Input"]), None)
    ec2 = cloud.client("ec2")
    (reserved,) = ec2.describe_instances(InstanceIds=[found["NotebookHostId"]])["Reservations"]
    endpoints = {e["State"] for e in ec2.describe_vpc_endpoints()["VpcEndpoints"]
                 if e["VpcEndpointType"] == "Interface"}  # fmt: skip
    assert reserved["Instances"][0]["State"]["Name"] == ("stopped" if over else "running")
    assert endpoints == ({"deleted"} if over else {"available"})
    assert gone == (list(cloud.resources.ServerlessCache.existing) if over else [])
    assert cloud.everything()["clusters"] == 1


@pytest.mark.parametrize(
    "parameters",
    [{}, {"HostType": "none", "MetricsEndpoint": "none", "EndsAfterDays": "0"}],
    ids=["as it comes", "with less"],
)
def test_deleting_leaves_nothing_though_the_bucket_was_full(cloud, parameters):
    before = cloud.everything()
    found = cloud.deploy("workshop", **parameters)
    s3 = cloud.moto("s3", "aws")
    for number in range(1_001):  # more than one page, and than one deletion takes
        s3.put_object(found["BucketName"], f"objects/{number}", b"data")
    cloud.deploy("workshop", **parameters, MaxReceives="4")
    missing = {kind for kind, number in cloud.everything().items() if number == before[kind]}
    assert missing <= {"instances", "profiles", "mappings"}
    cloud.delete("workshop")
    assert cloud.everything() == before
