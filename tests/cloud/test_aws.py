"""`workshop aws`: shown before it is done, done once, and explained where it cannot be done."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from aws import ACCOUNT
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from click.testing import CliRunner

from workshop_lib.aws import stacks as aws
from workshop_lib.cli import main

NAME = "cache-aside-workshop"
DATABASE = f"{NAME}-database"
HERE, THERE, WITNESS = "us-east-1", "us-east-2", "us-west-2"
SIDES = ("--regions", f"{HERE},{THERE}", "--witness", WITNESS)


class Account:
    """The emulated account, and the commands in it."""

    def __init__(self, cloud, monkeypatch):
        self.cloud, self._patch, self.workers, self.answers = cloud, monkeypatch, [b"worker 1"], {}
        self._call = BaseClient._make_api_call

        def ask(client, *request):
            return self._ask(client, *request)

        monkeypatch.setattr(BaseClient, "_make_api_call", ask)
        monkeypatch.setattr(aws, "build_package", self._build)

    def run(self, *words, given=None, code=0):
        """What a command says; `given` is typed into it."""
        done = CliRunner().invoke(main, ["aws", *words], input=given)
        assert (done.exit_code, ACCOUNT in done.output) == (code, False), done.output
        return done.output

    def answer(self, operation, *answers):
        """Answer an operation with these, one after the other, and the last one from then on."""
        self.answers[operation] = list(answers)

    def stack(self, name=NAME, region=HERE):
        client = self.cloud.client("cloudformation", region)
        found = [one for one in client.describe_stacks()["Stacks"] if one["StackName"] == name]
        return found[0] if found else None

    def values(self, kind="Parameter", **where):
        """The parameters, or outputs, of a stack."""
        found = self.stack(**where)[f"{kind}s"]
        return {one[f"{kind}Key"]: one[f"{kind}Value"] for one in found}

    def keys(self, prefix):
        bucket = self.values("Output")["BucketName"]
        found = self.cloud.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [one["Key"] for one in found.get("Contents", ())]

    def _ask(self, client, operation, given):
        if operation not in self.answers:
            return self._call(client, operation, given)
        answers = self.answers[operation]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def _build(self, out, *, architecture, python):
        assert (architecture, python) == ("arm64", "3.12")
        out.write_bytes(self.workers[-1])
        return out


@pytest.fixture
def account(cloud, monkeypatch):
    monkeypatch.setenv("AWS_REGION", HERE)
    monkeypatch.setattr(aws, "POLL_S", 0.0)
    monkeypatch.setattr(aws, "DELETE_AGAIN_S", 0.0)
    found = Account(cloud, monkeypatch)
    found.answer("GetAccountSettings", {"AccountLimit": {"ConcurrentExecutions": 10}})
    return found


def refusal(code, message="no"):
    return ClientError({"Error": {"Code": code, "Message": message}}, "Asked")


def event(name, state, reason=""):
    """What CloudFormation says of a resource, or of the stack itself ("")."""
    mark = f"{name} {state}"
    return {"EventId": mark, "LogicalResourceId": name, "ResourceType": "AWS::EC2::VPC",
            "ResourceStatus": state, "ResourceStatusReason": reason, "StackId": "id",
            "PhysicalResourceId": name or "id", "Timestamp": datetime.now(UTC)}  # fmt: skip


def events(*found):
    return {"StackEvents": list(reversed(found))}


# --- deploy


def test_a_first_deployment_looks_shows_asks_and_fills_the_bucket(account):
    said = account.run("deploy", given="y\n")
    assert f"✓ account …{ACCOUNT[-4:]}, {HERE}, as user/moto" in said
    assert "10 Lambda functions at once in this account" in said
    assert "add         Cluster (AWS::DSQL::Cluster)" in said
    assert "0.0565 USD per hour" in said
    ends = account.stack()["CreationTime"] + timedelta(days=3)
    assert f"0.0063 from {ends:%Y-%m-%d}" in said
    assert said.index("USD per hour") < said.index("Go on?") < said.index("is in the bucket")
    values, outputs = account.values(), account.values("Output")
    assert (values["Zone1"], values["Zone2"]) == ("us-east-1b", "us-east-1c")
    assert account.keys("setup/") == [values["CodeKey"], "setup/workshop.tar.gz"]
    assert outputs["LoadFunctionName"] == f"{NAME}-load"
    assert outputs["HostSession"] in said
    account.cloud.client("iam").create_account_alias(AccountAlias="playground")
    assert f"✓ account playground, {THERE}" in account.run("deploy", "--dry-run", "--region", THERE)


def test_later_deployments_keep_the_host_its_zones_and_what_was_given(account, monkeypatch):
    account.run("deploy", "--yes", "-p", "LogDays=3")
    before, host = account.values(), account.values("Output")["NotebookHostId"]
    assert "Nothing to change." in account.run("deploy", given="")  # and asks nothing
    monkeypatch.setitem(account.cloud.resources.ZONES, "dsql-fnh4", "ef")
    account.answer("GetParameter", {"Parameter": {"Value": "ami-0fedcba9876543210"}})
    account.workers.append(b"worker 2")
    said = account.run("deploy", "--yes", "-p", "PythonVersion=3.12", "-p", "MaxReceives=5")
    assert "REPLACE" not in said
    changed = {**before, "MaxReceives": "5", "CodeKey": account.values()["CodeKey"]}
    assert account.values() == changed
    assert changed["CodeKey"] != before["CodeKey"]
    assert account.values("Output")["NotebookHostId"] == host


def test_zones_are_those_that_offer_everything_or_are_given(account, monkeypatch):
    """Which these are differs from run to run, as it does from account to account."""
    one, two, *others = random.sample("abcdf", 5)  # those that have the host's type
    for service, letter in zip(account.cloud.resources.ZONES, others, strict=True):
        monkeypatch.setitem(account.cloud.resources.ZONES, service, one + two + letter)
    first, second = sorted(f"{HERE}{letter}" for letter in (one, two))
    assert f"✓ zones {first} and {second}" in account.run("deploy", "--dry-run")
    account.answer("DescribeInstanceTypeOfferings", {"InstanceTypeOfferings": []})
    assert "No two zones of us-east-1" in account.run("deploy", "--yes", code=1)
    assert account.stack() is None
    given = ("-p", "Zone1=us-east-1e", "-p", "Zone2=us-east-1f")
    account.run("deploy", "--yes", "--no-function", *given)
    values = account.values()
    assert (values["Zone1"], values["Zone2"]) == ("us-east-1e", "us-east-1f")


def test_another_processor_gets_an_image_of_its_own(account):
    account.run("deploy", "--yes", "--no-function")
    before = account.values()["HostImage"]
    account.answer("GetParameter", {"Parameter": {"Value": "ami-0fedcba9876543210"}})
    said = account.run("deploy", "--yes", "--no-function", "-p", "HostType=t4g.medium")
    assert "An account on the free plan cannot start t4g.medium" in said
    assert account.values()["HostImage"] == before
    account.run("deploy", "--yes", "--no-function", "-p", "HostType=t3.small")
    assert account.values()["HostImage"] == "ami-0fedcba9876543210"


def test_without_a_yes_nothing_is_left_behind(account):
    for words, given, code in ((["--dry-run"], "", 0), ([], "n\n", 1), ([], "", 1)):
        said = account.run("deploy", *words, given=given, code=code)
        assert "USD per hour" in said
        assert "Nothing was changed" in said
        assert account.stack() is None
        assert account.cloud.client("s3").list_buckets()["Buckets"] == []


@pytest.mark.parametrize(
    ("operation", "answer", "said"),
    [
        ("GetCallerIdentity", refusal("ExpiredToken"), "Your session with AWS has ended"),
        ("CreateChangeSet", refusal("ValidationError", "Parameters: [Nope] do not"), "[Nope] do"),
    ],
)
def test_what_is_not_right_is_said_before_anything_is_made(account, operation, answer, said):
    account.answer(operation, answer)
    assert said in account.run("deploy", "--yes", code=1)
    assert account.answers.pop(operation)
    assert account.stack() is None


def test_an_installed_package_has_no_clone_to_upload(account, monkeypatch):
    monkeypatch.setattr(aws, "IN_CHECKOUT", False)
    assert "no git clone here" in account.run("deploy", "--yes", "--no-function")
    assert account.keys("setup/") == []


def test_a_stack_from_another_template_is_left_alone(account):
    template = {"Description": "Payroll", "Resources": {"Q": {"Type": "AWS::SQS::Queue"}}}
    account.cloud.client("cloudformation").create_stack(
        StackName=NAME, TemplateBody=json.dumps(template)
    )
    for command in (["deploy", "--yes"], ["destroy", "--yes"], ["status"]):
        assert "another template ('Payroll')" in account.run(*command, code=1)
    assert account.stack()


def test_what_is_replaced_or_removed_is_warned_about(account):
    account.run("deploy", "--yes", "--no-function")
    change = {"LogicalResourceId": "NotebookHost", "ResourceType": "AWS::EC2::Instance",
              "Action": "Modify", "Replacement": "True"}  # fmt: skip
    answer = {"Status": "CREATE_COMPLETE", "Changes": [{"ResourceChange": change}]}
    account.answer("DescribeChangeSet", answer)
    said = account.run("deploy", "--dry-run", "-p", "HostImage=ami-0fedcba9876543210")
    assert "REPLACE     NotebookHost" in said
    assert "the notebook host with its files is LOST" in said


def test_the_first_cause_of_a_failure_is_told_with_what_helps_and_the_zones(account):
    account.answer("ExecuteChangeSet", {})
    failed = "Insufficient capacity in the zone. (HandlerErrorCode: GeneralServiceException)"
    account.answer(
        "DescribeStackEvents",
        events(event("", "REVIEW_IN_PROGRESS")),
        events(
            event("", "REVIEW_IN_PROGRESS"),
            event("Vpc", "CREATE_COMPLETE"),
            event("NotebookHost", "CREATE_FAILED", failed),
            event("Queue", "CREATE_FAILED", "Resource creation cancelled"),
            event("", "ROLLBACK_COMPLETE"),
        ),
    )
    said = account.run("deploy", "--yes", code=1)
    assert f"{HERE}  CREATE_COMPLETE  Vpc" in said
    zones = "us-east-1b us-east-1c"
    assert f"{NAME} ({HERE} {zones}) ended as ROLLBACK_COMPLETE:\n  NotebookHost" in said
    assert "\n  Queue" not in said
    assert f"workshop aws destroy --stack {NAME} --region {HERE}" in said


# --- status, destroy


def test_status_says_how_old_it_is_and_what_it_has_cost(account):
    account.run("deploy", "--yes", "--no-function")
    (stack,) = account.cloud.moto("cloudformation").stacks.values()
    stack.creation_time -= timedelta(hours=100)
    said = account.run("status")
    facts = dict(line.rsplit(maxsplit=1) for line in said.splitlines())
    assert facts["  age in hours"] == "100.0"
    # Three days of it; then it ended, and only disk and dashboard were left.
    assert facts["  USD so far"] == f"{72 * 0.0565 + 28 * 0.0063:.2f}"
    assert account.values("Output")["DSQLClusterEndpoint"] in said
    assert "USD per hour" in said
    assert "There is no stack other" in account.run("status", "--stack", "other", code=1)


def test_destroy_says_what_goes_and_what_remains(account):
    account.run("deploy", "--yes", "--no-function")
    account.run("destroy", given="n\n", code=1)
    assert account.stack()
    said = account.run("destroy", "--yes")
    assert "the database with all its tables" in said
    assert f"{NAME} in {HERE} is deleted. What remains: metrics" in said
    assert account.stack() is None
    assert "nothing to delete" in account.run("destroy", "--yes")


def test_a_protected_database_is_not_deleted(account):
    account.run("deploy", "--yes", "--no-function", "-p", "DeletionProtection=true")
    assert "-p DeletionProtection=false" in account.run("destroy", "--yes", code=1)
    assert account.stack()["StackStatus"] == "CREATE_COMPLETE"


def test_a_network_that_lambda_still_holds_is_deleted_in_the_end(account):
    account.run("deploy", "--yes", "--no-function")
    held = event("PrivateSubnet1", "DELETE_FAILED", "The subnet has dependencies")
    start = event("", "CREATE_COMPLETE")
    first = [start, held, event("", "DELETE_FAILED")]
    account.answer("DeleteStack", {})
    account.answer(
        "DescribeStackEvents", events(start), events(*first), events(*first),
        events(*first, event("", "DELETE_COMPLETE")),
    )  # fmt: skip
    said = account.run("destroy", "--yes")
    assert "Lambda gives its network interfaces back" in said
    assert f"{NAME} in {HERE} is deleted" in said


# --- two Regions


def test_two_regions_are_linked_filled_and_deleted(account):
    account.run("link", *SIDES, "--yes")
    arns = {account.values("Output", name=DATABASE, region=one)["DSQLClusterArn"]
            for one in (HERE, THERE)}  # fmt: skip
    for region in (HERE, THERE):
        values = account.values(name=DATABASE, region=region)
        assert {values["ClusterArn"], values["PeerClusterArn"]} == arns
    account.run("link", *SIDES, "--yes")  # and again, which changes nothing
    for region in (HERE, THERE):
        account.run("deploy", "--region", region, "--no-function", "--yes")
        own = account.values("Output", name=DATABASE, region=region)["DSQLClusterArn"]
        assert account.values("Output", region=region)["DSQLClusterArn"] == own
    account.run("destroy", "--linked", "--yes", "--region", THERE)
    left = {account.stack(name, region) for name in (NAME, DATABASE) for region in (HERE, THERE)}
    assert left == {None}


@pytest.mark.parametrize("end", ["finish", "undo"])
def test_a_link_that_is_half_done_can_be_finished_or_undone_from_either_side(account, end):
    account.answer("CreateChangeSet", KeyboardInterrupt())
    account.run("link", *SIDES, "--yes", code=130)
    account.answers.clear()
    for region, peer in ((HERE, THERE), (THERE, HERE)):
        account.cloud.deploy(DATABASE, "multi-region", region, PeerRegion=peer)
    assert "is half done: `workshop aws link`" in account.run("deploy", "--yes", code=1)
    if end == "finish":
        account.run("link", *SIDES, "--yes")
        assert account.values("Output", name=DATABASE, region=THERE)["Phase"] == "linked"
    else:
        account.run("destroy", "--stack", DATABASE, "--yes", "--region", THERE)
        assert account.stack(DATABASE, HERE) is account.stack(DATABASE, THERE) is None


@pytest.mark.parametrize(
    ("regions", "witness", "said"),
    [
        (HERE, WITNESS, "It takes three Regions"),
        (f"{HERE},{THERE}", HERE, "It takes three Regions"),
        (f"{HERE},{WITNESS}", THERE, f"has WitnessRegion={WITNESS}, PeerRegion={THERE}"),
    ],
)
def test_regions_that_do_not_go_together_are_refused(account, regions, witness, said):
    account.cloud.deploy(DATABASE, "multi-region", HERE)
    given = ("--regions", regions, "--witness", witness, "--yes")
    assert said in account.run("link", *given, code=1)
