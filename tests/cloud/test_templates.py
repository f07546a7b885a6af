"""What can be seen of the CloudFormation templates without deploying them."""

import re
import subprocess
import sys
from pathlib import Path

from cfnlint.decode import decode

from workshop_lib.aws.stacks import read_template
from workshop_lib.load import FUNCTION_MB
from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import NAMESPACE

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
CHARGED = {
    f"AWS::{kind}"
    for kind in (
        "EC2::VPCEndpoint", "EC2::Instance", "ElastiCache::ServerlessCache",
        "CloudWatch::Dashboard",
    )
}  # fmt: skip
"""By the hour or the month."""


def read(name):
    """A template, with the long form of functions: `{"Ref": "Name"}`."""
    return decode(str(FOLDER / f"{name}.yaml"))[0]


WORKSHOP = read("workshop")


RESOURCES = WORKSHOP["Resources"]


def statements():
    """The statements of identities' policies, each with where it stands."""
    for name, one in RESOURCES.items():
        held = one.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in held.get("Policies", [])]
        if one["Type"] in {"AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"}:
            documents.append(held["PolicyDocument"])
        for document in documents:
            for statement in document["Statement"]:
                yield name, statement


def listed(value):
    return value if isinstance(value, list) else [value]


def test_cfn_lint_has_nothing_to_say():
    files = [FOLDER / f"{name}.yaml" for name in NAMES]
    program = Path(sys.executable).with_name("cfn-lint")
    options = ["--include-checks", "I", "--regions", "us-east-1"]
    done = subprocess.run(
        [program, *options, "--", *files], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_stack_takes_the_namespaces_that_the_settings_take():
    patterns = {read(name)["Parameters"]["Namespace"]["AllowedPattern"] for name in NAMES}
    assert patterns == {NAMESPACE}


def test_a_template_is_small_enough_to_be_sent_without_a_bucket():
    assert all(file.stat().st_size <= MOST_BYTES for file in FOLDER.glob("*.yaml"))


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


def test_nothing_that_a_deployment_changes_by_itself_makes_the_host_anew():
    text = (FOLDER / "workshop.yaml").read_text()
    assert "resolve:ssm" not in text
    assert "AWS::SSM::Parameter" not in text
    host = RESOURCES["NotebookHost"]["Properties"]
    assert host["ImageId"] == {"Ref": "HostImage"}
    assert host["CreditSpecification"]["Fn::If"][1] == {"CPUCredits": "standard"}
    script = host["UserData"]["Fn::Base64"]["Fn::Sub"]
    assert set(re.findall(r"\$\{([^}]+)\}", script)) == {
        "AWS::Region", "AWS::StackName", "Bucket",
    }  # fmt: skip


def test_as_it_comes_the_stack_costs_at_most_seven_cents_an_hour_and_ends():
    given = read_template("workshop")
    prices, rest = given["Metadata"]["CostPerHour"], given["Metadata"]["CostAfterEnd"]
    paid = {name for name, one in RESOURCES.items() if one["Type"] in CHARGED} - {"S3Endpoint"}
    assert paid == set(prices) & set(RESOURCES)
    host = WORKSHOP["Parameters"]["HostType"]
    assert set(host["AllowedValues"]) - {"none"} == set(prices) - paid
    total = sum(float(prices[name]) for name in {*paid, host["Default"]})
    assert 0.05 < total <= 0.07
    assert 0 < sum(map(float, rest.values())) < total / 5
    assert set(rest) < paid
    assert WORKSHOP["Parameters"]["EndsAfterDays"]["Default"] > 0
    assert WORKSHOP["Parameters"]["FunctionMemory"]["Default"] == FUNCTION_MB
