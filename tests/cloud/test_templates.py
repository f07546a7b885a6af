"""What can be seen of the CloudFormation templates without deploying them."""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from botocore import xform_name

from workshop_lib.aws import read_template
from workshop_lib.lambda_package import HANDLER
from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import Settings

FOLDER = CHECKOUT / "cloudformation"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MOST_BYTES = 46_080  # well below the 51,200 of a template that is no S3 object
NAMELESS = {
    # Metrics have no ARN; nor have the channels of Session Manager; and Lambda refuses its role
    # unless it may do these on all interfaces (Service Authorization Reference).
    "cloudwatch:GetMetricData",
    "cloudwatch:PutMetricData",
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
SERVICES = ("s3", "sqs", "cloudwatch", "lambda", "sts")
ACTIONS = {  # where the permission is not called what the operation is called
    "s3:ListObjects": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:DeleteObjects": "s3:DeleteObject",
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "lambda:Invoke": "lambda:InvokeFunction",
}
CHARGED = {
    f"AWS::{kind}"
    for kind in (
        "EC2::VPCEndpoint", "EC2::Instance", "EC2::NatGateway", "ElastiCache::ServerlessCache",
        "CloudWatch::Dashboard", "CloudWatch::Alarm",
    )
}  # fmt: skip
"""By the hour or the month."""
NOT_ON_AWS = {
    # Where a bucket and a queue are given, as the stack's are, nobody makes others.
    "s3:CreateBucket",
    "sqs:CreateQueue",
    "sqs:DeleteQueue",
    "sqs:ListQueues",
    "sqs:SetQueueAttributes",
    # Everybody may ask who they are (STS API Reference, GetCallerIdentity).
    "sts:GetCallerIdentity",
}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads the short form of functions, `!Ref Name`, as the long one."""


def _function(loader, suffix, node):
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        return {name: value.split(".", 1) if name == "Fn::GetAtt" else value}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    return {name: loader.construct_mapping(node, deep=True)}


Loader.add_multi_constructor("!", _function)


def read(name):
    return yaml.load((FOLDER / f"{name}.yaml").read_text(), Loader)  # noqa: S506 -- a SafeLoader


WORKSHOP = read("workshop")


def resources(template=WORKSHOP, kind=None):
    found = template["Resources"]
    return {name: one for name, one in found.items() if kind in {None, one["Type"]}}


def properties(name):
    return WORKSHOP["Resources"][name]["Properties"]


def statements(names=None):
    """The statements of identities' policies, each with where it stands."""
    for name, one in resources().items():
        if names is not None and name not in names:
            continue
        held = one.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in held.get("Policies", [])]
        if one["Type"] == "AWS::IAM::ManagedPolicy":
            documents.append(held["PolicyDocument"])
        for document in documents:
            for statement in document["Statement"]:
                yield name, statement


def listed(value):
    return value if isinstance(value, list) else [value]


def granted(*names):
    """What these may do."""
    found = [one for _, one in statements(names) if one["Effect"] == "Allow"]
    return {action for one in found for action in listed(one["Action"])}


def tool(name):
    """Where a program is, beside this Python or on the PATH; None if nowhere."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


@functools.cache
def called():
    """The permissions that the package's calls of AWS need."""
    operations = {
        xform_name(operation): f"{service}:{operation}"
        for service in SERVICES
        for operation in boto3.client(
            service, "us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        ).meta.service_model.operation_names
    }
    found = set()
    for file in (CHECKOUT / "workshop_lib").rglob("*.py"):
        if file.stem == "aws":
            continue  # whoever makes the stacks, and not who works on them
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = node.func.attr
            words = [one.value for one in node.args[:1] if isinstance(one, ast.Constant)]
            if words and words[0] in operations:  # by its name, as get_paginator has it
                name = words[0]
            found |= {operations[name]} if name in operations else set()
    return {ACTIONS.get(one, one) for one in found} - NOT_ON_AWS


def test_cfn_lint_has_nothing_to_say():
    files = [FOLDER / f"{name}.yaml" for name in NAMES]
    command = [tool("cfn-lint"), "--include-checks", "I", "--regions", "us-east-1", "--", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_checkov_finds_nothing_that_is_not_explained():
    own = CHECKOUT / "build" / "checkov" / "bin" / "checkov"
    linter = str(own) if own.exists() else tool("checkov")
    if linter is None:
        pytest.skip("checkov wants an environment of its own: `make templates` makes it")
    done = subprocess.run(
        [linter, "--directory", FOLDER, "--framework", "cloudformation", "--skip-download",
         "--output", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert [one["check_id"] for one in found["results"]["failed_checks"]] == []
    assert found["summary"]["parsing_errors"] == 0


def test_a_namespace_that_the_stack_takes_is_one_that_the_settings_take():
    (pattern,) = (
        rule.pattern
        for rule in Settings.model_fields["workshop_namespace"].metadata
        if hasattr(rule, "pattern")
    )
    for name in NAMES:
        assert f"^{read(name)['Parameters']['Namespace']['AllowedPattern']}$" == pattern


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_small_enough_to_be_sent_without_a_bucket(name):
    assert (FOLDER / f"{name}.yaml").stat().st_size <= MOST_BYTES


def test_the_notebooks_are_allowed_what_the_package_calls_and_little_else():
    sign_in = {"dsql:DbConnect", "dsql:DbConnectAdmin"}  # not calls: tokens are signed on the spot
    assert called() >= {"s3:PutObject", "sqs:SendMessage", "lambda:InvokeFunction"}  # were found
    assert granted("NotebookPolicy") == called() | sign_in | {
        "cloudformation:DescribeStacks",
        "logs:FilterLogEvents",
    }


def test_the_function_may_do_its_work_and_no_more():
    network = {action for action in NAMELESS if action.startswith("ec2:")}
    found = [one for _, one in statements({"FunctionRole"})]
    sign_in = found.pop(0)
    # Its user is one of its own, unless the parameter says that there is none.
    assert sign_in["Action"] == {"Fn::If": ["AsAdmin", "dsql:DbConnectAdmin", "dsql:DbConnect"]}
    assert WORKSHOP["Parameters"]["IamUserName"]["Default"] != "admin"
    actions = {
        action for one in found if one["Effect"] == "Allow" for action in listed(one["Action"])
    }
    assert actions - network == {
        "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes",
        "logs:CreateLogStream", "logs:PutLogEvents",
        "cloudwatch:PutMetricData",
    }  # fmt: skip
    assert [one["Action"] for one in found if one["Effect"] == "Deny"] == ["ec2:*"]


def test_what_has_a_name_is_named():
    for name, one in statements():
        if one["Effect"] == "Deny":
            continue
        actions = set(listed(one["Action"])) if "Fn::If" not in one["Action"] else set()
        assert not [action for action in actions if "*" in action], name
        if "*" in listed(one["Resource"]):
            assert actions <= NAMELESS, (name, actions - NAMELESS)
    for line in (FOLDER / "workshop.yaml").read_text().splitlines():
        if re.search(r'Resource: "\*"', line):
            assert "# " in line, "a reason is missing"


def test_nothing_comes_in_but_from_host_and_function_to_the_services():
    asking, answering = resources(kind="AWS::EC2::SecurityGroup").values()
    assert "SecurityGroupIngress" not in asking["Properties"]
    port = {"Ref": "DatabasePort"}
    ways = [(rule["FromPort"], rule["ToPort"], rule["SourceSecurityGroupId"]["Fn::If"][0])
            for rule in answering["Properties"]["SecurityGroupIngress"]]  # fmt: skip
    assert ways == [(a, b, "OwnClientGroup") for a, b in ((443, 443), (port, port), (6379, 6380))]
    out = [
        (rule["FromPort"], rule["ToPort"]) for rule in asking["Properties"]["SecurityGroupEgress"]
    ]
    assert out == [way[:2] for way in ways]


def test_nothing_that_a_deployment_changes_by_itself_makes_the_host_anew():
    text = (FOLDER / "workshop.yaml").read_text()
    assert "resolve:ssm" not in text
    assert "AWS::SSM::Parameter" not in text
    host = properties("NotebookHost")
    assert host["ImageId"] == {"Ref": "HostImage"}
    assert host["CreditSpecification"]["Fn::If"][1] == {"CPUCredits": "standard"}
    script = host["UserData"]["Fn::Base64"]["Fn::Sub"]
    assert set(re.findall(r"\$\{([^}]+)\}", script)) == {
        "AWS::Region", "AWS::StackName", "Bucket",
    }  # fmt: skip


def test_as_it_comes_the_stack_costs_at_most_seven_cents_an_hour_and_ends():
    given = read_template("workshop")
    prices = given["Metadata"]["CostPerHour"]
    paid = {name for name, one in resources().items() if one["Type"] in CHARGED} - {"S3Endpoint"}
    assert paid == set(prices) & set(WORKSHOP["Resources"])
    host = WORKSHOP["Parameters"]["HostType"]
    assert set(host["AllowedValues"]) - {"none"} == set(prices) - paid
    total = sum(float(prices[name]) for name in {*paid, host["Default"]})
    assert 0.05 < total <= 0.07
    assert WORKSHOP["Parameters"]["EndsAfterDays"]["Default"] > 0


def test_the_caretaker_may_end_the_bill_of_this_stack_and_no_other():
    end = properties("EndPolicy")["PolicyDocument"]["Statement"]
    assert {one["Action"] for one in end} == {
        "cloudformation:DescribeStacks", "ec2:StopInstances", "ec2:DeleteVpcEndpoints",
        "elasticache:DeleteServerlessCache",
    }  # fmt: skip
    assert "*" not in [resource for one in end for resource in listed(one["Resource"])]


def test_the_bucket_and_the_queues_are_encrypted_private_and_reached_by_tls_only():
    bucket = properties("Bucket")
    assert bucket["BucketEncryption"]
    assert "VersioningConfiguration" not in bucket
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    for queue in ("Queue", "DeadLetterQueue"):
        assert properties(queue)["SqsManagedSseEnabled"] is True
    assert properties("QueuePolicy")["Queues"] == [{"Ref": "Queue"}, {"Ref": "DeadLetterQueue"}]
    for policy in ("BucketPolicy", "QueuePolicy"):
        (statement,) = properties(policy)["PolicyDocument"]["Statement"]
        assert statement["Effect"] == "Deny"
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_a_message_stays_hidden_for_six_times_as_long_as_the_function_may_take():
    hidden = WORKSHOP["Mappings"]["Visibility"]
    allowed = WORKSHOP["Parameters"]["FunctionTimeout"]["AllowedValues"]
    assert {key: one["Seconds"] for key, one in hidden.items()} == {
        seconds: 6 * int(seconds) for seconds in allowed
    }
    assert properties("Queue")["VisibilityTimeout"]["Fn::FindInMap"][1] == {
        "Ref": "FunctionTimeout"
    }
    assert properties("LoadFunction")["Timeout"] == {"Ref": "FunctionTimeout"}


def test_the_function_is_what_the_package_builds():
    function = properties("LoadFunction")
    assert function["Handler"] == HANDLER
    assert function["Architectures"] == [{"Ref": "Architecture"}]
    variables = set(function["Environment"]["Variables"])
    assert {name.lower() for name in variables} - {"log_level"} <= set(Settings.model_fields)
    assert "DSQL_READ_ENDPOINT" in variables  # reads go elsewhere only where it is told where
    mapping = properties("QueueToFunction")
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
