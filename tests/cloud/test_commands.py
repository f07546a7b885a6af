"""`workshop aws`: shown before it is done, done once, and explained where it cannot be done."""

import json
import os
import re
import signal
import subprocess
import sys

import boto3
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from cloud.moto_resources import cloudformation_backends
from moto.core import DEFAULT_ACCOUNT_ID

from workshop_lib.aws import code, deploy as deploying, host_files
from workshop_lib.aws.deploy import Wish, deploy
from workshop_lib.aws.destroy import destroy
from workshop_lib.aws.link import deploy_linked, link
from workshop_lib.aws.status import read_status, show_status
from workshop_lib.cli import main
from workshop_lib.dataset import Sizes
from workshop_lib.errors import AwsError, WorkshopError
from workshop_lib.load.package import Package
from workshop_lib.paths import CHECKOUT

NAME = "cache-aside-workshop"
HERE, THERE, WITNESS = "us-east-1", "us-east-2", "us-west-2"


class Builder:
    """Builds a zip that stands for the load worker."""

    def __init__(self, contents=b"worker 1"):
        self.contents, self.built = contents, []

    def __call__(self, out, *, architecture, python):
        self.built.append((architecture, python))
        out.write_bytes(self.contents)
        return Package(out, architecture, python, 12_345_678, 2, 3, {})


class Wheels:
    """Stands for pip and its index."""

    def __init__(self, *names):
        self.names, self.fetched = names or ("boto3-1.whl", "redis-1.whl"), []

    def __call__(self, folder, architecture, python):
        self.fetched.append((architecture, python))
        for name in self.names:
            (folder / name).write_bytes(name.encode())


class Account:
    """The emulated account, and the commands in it."""

    def __init__(self, cloud, talk):
        self.cloud, self.talk = cloud, talk
        self.builder, self.wheels = Builder(), Wheels()

    def deploy(self, *given, region=HERE, **options):
        self.talk.lines.clear()
        return deploy(
            Wish(given=given, region=region, **options),
            self.talk.console,
            build=self.builder,
            download=self.wheels,
        )

    def destroy(self, *words, region=HERE, **options):
        self.talk.lines.clear()
        return destroy(*words, region=region, console=self.talk.console, **options)

    def link(self, *given, regions=(HERE, THERE), witness=WITNESS, **options):
        self.talk.lines.clear()
        return link(regions, witness, stack=NAME, console=self.talk.console, given=given, **options)

    def stacks(self, region=HERE):
        found = self.cloud.client("cloudformation", region).describe_stacks()["Stacks"]
        return {one["StackName"]: one for one in found}

    def outputs(self, name=NAME, region=HERE):
        found = self.stacks(region)[name]["Outputs"]
        return {one["OutputKey"]: one["OutputValue"] for one in found}

    def parameters(self, name=NAME, region=HERE):
        found = self.stacks(region)[name]["Parameters"]
        return {one["ParameterKey"]: one["ParameterValue"] for one in found}

    def keys(self, prefix=""):
        s3, bucket = self.cloud.client("s3"), self.outputs()["BucketName"]
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]


@pytest.fixture
def account(cloud, talk, monkeypatch):
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setattr(host_files, "pack_workshop", lambda: b"the workshop")
    monkeypatch.setattr(host_files, "uncommitted", lambda: False)
    return Account(cloud, talk)


# --- deploy ---


def test_a_first_deployment_checks_shows_asks_and_fills_the_bucket(account, talk):
    assert account.deploy()
    assert talk.lines[:7] == [
        "✓ Region       us-east-1 (from --region)",
        "✓ Credentials  signed in as user/moto",
        "✓ Services     us-east-1 has Aurora DSQL and ElastiCache",
        talk.lines[3],
        f"✓ Stack        there is no {NAME} in us-east-1 yet",
        talk.lines[5],
        "✓ Load worker  11.8 MB for Python 3.12 on arm64",
    ]
    assert re.fullmatch(
        r"✓ Template     workshop\.yaml is valid, \d\d,\d{3} of 51,200 bytes", talk.lines[3]
    )
    assert re.fullmatch(
        r"✓ Prefix list  pl-[0-9a-f]+ \(com\.amazonaws\.us-east-1\.s3\)", talk.lines[5]
    )
    assert talk.questions == ["Go on?"]
    assert f"Making {NAME} in us-east-1:" in talk.lines
    assert "  add         AWS::DSQL::Cluster: Cluster" in talk.lines
    assert account.builder.built == account.wheels.fetched == [("arm64", "3.12")]
    outputs = account.outputs()
    assert outputs["LoadFunctionName"] == f"{NAME}-load"
    assert len(account.keys("workshop/")) == Sizes().objects
    (worker,) = account.keys("setup/load-worker-")
    assert account.parameters()["CodeKey"] == worker
    assert account.keys("setup/w") == [
        "setup/wheels-made-from.txt",
        "setup/wheels/boto3-1.whl",
        "setup/wheels/redis-1.whl",
        "setup/workshop.tar.gz",
    ]
    end = talk.lines[talk.lines.index("The bucket:") :]
    host = outputs["NotebookHostId"]
    assert end[1:4] == [
        "  200 objects loaded",
        "  the workshop for the host uploaded",
        "  2 packages uploaded",
    ]
    assert f"  export WORKSHOP_STACK={NAME} AWS_REGION=us-east-1" in end
    assert f"  aws ssm start-session --region us-east-1 --target {host}" in end
    assert end[-2:] == [
        "It costs about 0.14 USD an hour, used or not, until:",
        "  workshop aws destroy --region us-east-1",
    ]
    assert DEFAULT_ACCOUNT_ID not in talk.text


def test_deploying_again_changes_nothing_and_asks_nothing(account, talk):
    account.deploy()
    before = (account.outputs(), account.parameters(), account.keys())
    talk.questions.clear()
    talk.interactive = False  # so it would be an error to ask
    assert account.deploy()
    assert "Nothing to change." in talk.lines
    assert (account.outputs(), account.parameters(), account.keys()) == before
    assert talk.lines[talk.lines.index("The bucket:") :][1:4] == [
        "  the 200 objects are there already",
        "  the workshop for the host is there already",
        "  its packages are there already",
    ]
    assert account.wheels.fetched == [("arm64", "3.12")]
    client = account.cloud.client("cloudformation")
    sets = client.list_change_sets(StackName=NAME)["Summaries"]
    assert [one for one in sets if one["Status"] == "FAILED"] == []


def test_new_code_gets_a_new_key_and_the_old_zip_goes(account, talk):
    account.deploy()
    (old,) = account.keys(code.WORKER)
    account.builder = Builder(b"worker 2")
    assert account.deploy()
    (new,) = account.keys(code.WORKER)
    assert new != old
    assert account.parameters()["CodeKey"] == new
    assert talk.questions == ["Go on?"] * 2


def test_without_the_function_nothing_is_built(account):
    assert account.deploy(function=False)
    assert account.builder.built == []
    assert "LoadFunctionName" not in account.outputs()
    account.deploy()
    account.deploy("LogDays=3", function=False)
    assert "LoadFunctionName" in account.outputs()


@pytest.mark.parametrize("given", ["NotebookHost=no", "NatGateway=yes"])
def test_a_host_that_is_not_there_or_helps_itself_gets_no_files(account, given):
    account.deploy(given, function=False)
    assert account.keys("setup/w") == []
    assert account.wheels.fetched == []


def test_packages_that_cannot_be_had_are_a_warning_and_come_with_the_next_deployment(account, talk):
    def nothing(folder, architecture, python):
        raise AwsError("The wheels could not be had.")

    wheels, account.wheels = account.wheels, nothing
    assert account.deploy()
    (warning,) = [line for line in talk.lines if line.startswith("WARNING")]
    assert warning.startswith(
        "WARNING: The notebook host cannot install the workshop yet, because its packages are not "
        "in the bucket. The wheels could not be had. Everything else is ready."
    )
    account.wheels = wheels
    account.deploy()
    assert len(account.keys(host_files.WHEELS)) == 2


def test_objects_of_somebody_else_are_left_alone(account, talk):
    account.deploy(host_files=False)
    s3, bucket = account.cloud.client("s3"), account.outputs()["BucketName"]
    s3.put_object(Bucket=bucket, Key="workshop/mine.txt", Body=b"mine")
    s3.delete_object(Bucket=bucket, Key="workshop/filename1.txt")
    account.deploy(host_files=False)
    assert "  the objects under workshop/ are left alone" in talk.text
    assert "workshop/mine.txt" in account.keys("workshop/")
    s3.delete_object(Bucket=bucket, Key="workshop/mine.txt")
    account.deploy(host_files=False)
    assert len(account.keys("workshop/")) == Sizes().objects


def test_what_is_not_wanted_after_all_leaves_nothing_behind(account, talk):
    before = account.cloud.everything()
    assert account.deploy(dry_run=True)
    assert "together" in talk.text
    talk.interactive = False
    with pytest.raises(AwsError, match=r"no terminal.*Nothing was changed\. --yes"):
        account.deploy()
    assert talk.questions == []
    talk.interactive, talk.answer = True, False
    assert account.deploy() is False
    assert talk.lines[-1] == "Nothing was changed."
    talk.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        account.deploy()
    assert account.stacks() == {}
    assert account.cloud.everything() == before
    client = account.cloud.client("cloudformation")
    assert client.list_change_sets(StackName=NAME)["Summaries"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"given": ("Nope=1",)}, r"no parameter 'Nope'\. It has: AlarmTopicArn, Architecture, "),
        ({"given": ("MaxReceives",)}, "'MaxReceives' is not of the form NAME=VALUE"),
        ({"given": ("MaxReceives=x",)}, "MaxReceives='x' is not a number"),
        ({"given": ("CacheMaximumGB=0",)}, "CacheMaximumGB='0' is not between 1 and 5,000"),
        ({"given": ("LogDays=2",)}, "LogDays='2' is none of 1, 3, 5, "),
        ({"given": ("VpcCidr=8.8.8.0/24",)}, "is not private addresses, /16 to /20"),
        ({"given": ("Namespace=setup",)}, "'setup' is where the bucket keeps code"),
        ({"stack": "1st"}, "'1st' cannot be a stack's name"),
        ({"stack": "x" * 46}, "at most 45"),
        ({"region": "us-esat-1"}, r"no Region that boto3 knows\. Did you mean .*us-east-1"),
        ({"region": "Virginia"}, "Regions are named like us-east-1"),
    ],
)
def test_what_is_wrong_with_the_request_is_said_before_anything_is_sent(talk, options, said):
    with pytest.raises(AwsError, match=said):
        deploy(Wish(**options), talk.console)
    assert [line for line in talk.lines if line.startswith("✓")] == []


def test_a_region_is_needed_and_may_come_from_the_environment(account, talk, monkeypatch):
    monkeypatch.setenv("AWS_REGION", THERE)
    account.deploy(region=None, dry_run=True)
    assert talk.lines[0] == "✓ Region       us-east-2 (from AWS_REGION)"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", HERE)
    account.deploy(region=None, dry_run=True)
    assert talk.lines[0] == "✓ Region       us-east-1 (from boto3's configuration)"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AwsError, match="No AWS Region is set"):
        account.deploy(region=None)


def answer(account, monkeypatch, operation, code, message="no", status=400):
    """Have AWS refuse an operation."""
    call = boto3.client("sts", HERE).__class__.__mro__[1]._make_api_call
    from botocore.client import BaseClient  # noqa: PLC0415

    def refuse(client, name, given):
        if name == operation:
            raise ClientError(
                {
                    "Error": {"Code": code, "Message": message},
                    "ResponseMetadata": {"HTTPStatusCode": status},
                },
                name,
            )
        return call(client, name, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)


@pytest.mark.parametrize(
    ("operation", "code", "step", "said"),
    [
        ("GetCallerIdentity", "ExpiredToken", "Credentials", "Your session with AWS has ended"),
        ("ListClusters", "UnknownOperation", "Services", "Aurora DSQL does not answer in us-east"),
        ("ValidateTemplate", "ValidationError", "Template", r"workshop\.yaml checked: Val.*: no\."),
        ("DescribeStacks", "AccessDenied", "Stack", "You may not do this"),
    ],
)
def test_the_first_thing_that_is_not_right_ends_it(
    account, talk, monkeypatch, operation, code, step, said
):
    answer(account, monkeypatch, operation, code)
    with pytest.raises(AwsError, match=said):
        account.deploy()
    assert talk.lines[-1] == f"✗ {step}"
    assert account.builder.built == []


def test_a_worker_that_cannot_be_built_is_said_before_anything_is_made(account, talk):
    def fail(*_, **__):
        raise WorkshopError("The wheels could not be had.")

    account.builder = fail
    with pytest.raises(AwsError, match=r"had\. --no-function deploys without the function\."):
        account.deploy()
    assert talk.lines[-1] == "✗ Load worker"
    assert account.stacks() == {}


def test_a_stack_that_cannot_be_changed_says_what_to_do(account, talk):
    account.deploy(host_files=False, function=False)
    for status, said in {
        "ROLLBACK_COMPLETE": r"cannot be changed any more.*`workshop aws destroy --region us-e",
        "DELETE_FAILED": "Delete it, then deploy again",
        "UPDATE_IN_PROGRESS": r"Wait until it is done; `workshop aws status --region us-east-1`",
        "UPDATE_ROLLBACK_FAILED": "continue-update-rollback --stack-name cache-aside-workshop",
    }.items():
        emulated().status = status
        with pytest.raises(AwsError, match=said):
            account.deploy()
        assert talk.lines[-1] == "✗ Stack"


def emulated(name=NAME, region=HERE):
    """What moto keeps of a stack."""
    found = cloudformation_backends[DEFAULT_ACCOUNT_ID][region].stacks.values()
    (stack,) = (stack for stack in found if stack.name == name)
    return stack


@pytest.fixture
def strange(account):
    """A stack of that name that somebody made from another template."""
    template = {"Description": "Payroll", "Resources": {"Q": {"Type": "AWS::SQS::Queue"}}}
    account.cloud.client("cloudformation").create_stack(
        StackName=NAME, TemplateBody=json.dumps(template)
    )


def test_a_stack_of_somebody_else_is_neither_changed_nor_deleted(account, strange, talk):
    said = r"was not made from a template of this workshop \(it says: 'Payroll'\)"
    with pytest.raises(AwsError, match=said):
        account.deploy(yes=True)
    with pytest.raises(AwsError, match=said):
        account.destroy(yes=True)
    with pytest.raises(AwsError, match=said):
        read_status(NAME, HERE)
    assert set(account.stacks()) == {NAME}


# --- status ---


def test_status_shows_the_outputs_without_the_account_and_what_it_costs(account, talk):
    account.deploy(host_files=False)
    talk.lines.clear()
    show_status(NAME, HERE, talk.console)
    assert talk.lines[0] == f"{NAME} in us-east-1: UPDATE_COMPLETE"
    assert any(re.match(r"  QueueUrl +https://.*/…/", line) for line in talk.lines)
    assert any(re.match(r"  0\.1\d{3}  together; \d+ USD if it stays", line) for line in talk.lines)
    assert DEFAULT_ACCOUNT_ID not in talk.text
    found, _, _ = read_status(NAME, HERE)
    shown = found.to_json()
    assert shown["outputs"]["BucketName"] == account.outputs()["BucketName"]
    assert 0.13 < shown["usd_per_hour"] < 0.15
    assert DEFAULT_ACCOUNT_ID not in json.dumps(shown)


def test_status_of_a_stack_that_is_not_there_says_where_it_looked(account):
    with pytest.raises(AwsError, match=rf"There is no stack {NAME} in us-east-2\. Is it in anoth"):
        read_status(NAME, THERE)


# --- destroy ---


def test_destroy_says_what_goes_deletes_it_and_says_what_remains(account, talk):
    before = account.cloud.everything()
    account.deploy("CacheFinalSnapshot=last")
    assert account.destroy()
    assert "This deletes, for good:" in talk.lines
    assert "    the bucket with 205 objects" in talk.lines
    assert "    the database with all its tables" in talk.lines
    end = talk.lines[talk.lines.index(f"{NAME} in us-east-1 is deleted. What remains of it:") :]
    assert end[1].startswith("  the cache's final snapshot last, which costs until it is deleted")
    assert end[2:] == ["  metrics, which CloudWatch keeps for 15 months without charge"]
    assert account.cloud.everything() == before
    assert account.destroy()
    assert talk.lines[-1] == f"There is no stack {NAME} in us-east-1; nothing to delete."


def test_destroy_asks_and_without_a_yes_nothing_goes(account, talk):
    account.deploy(host_files=False)
    talk.answer = False
    assert account.destroy() is False
    assert talk.lines[-1] == "Nothing was deleted."
    talk.interactive = False
    with pytest.raises(AwsError, match="no terminal"):
        account.destroy()
    assert set(account.stacks()) == {NAME}


def test_a_protected_database_says_how_it_is_given_free(account):
    account.deploy("DeletionProtection=true", host_files=False)
    with pytest.raises(AwsError, match=r"deploy --region us-east-1 -p DeletionProtection=false`"):
        account.destroy(yes=True)
    account.deploy("DeletionProtection=false", host_files=False)
    assert account.destroy(yes=True)


# --- link ---


def test_two_regions_are_linked_and_a_second_time_nothing_is_done(account, talk):
    assert account.link()
    sides = {region: account.outputs(f"{NAME}-database", region) for region in (HERE, THERE)}
    assert {one["Phase"] for one in sides.values()} == {"linked"}
    for region, peer in {HERE: THERE, THERE: HERE}.items():
        found = account.parameters(f"{NAME}-database", region)
        assert found["PeerClusterArn"] == sides[peer]["DSQLClusterArn"]
        assert found["WitnessRegion"] == WITNESS
    assert "Making in us-east-1 and us-east-2:" in talk.lines
    assert "Linking in us-east-1 and us-east-2:" in talk.lines
    assert talk.questions == ["Go on?"]
    assert DEFAULT_ACCOUNT_ID not in talk.text
    talk.interactive = False
    assert account.link()
    assert talk.lines[-1] == f"Already linked: {NAME}-database in us-east-1 and us-east-2."


def test_linking_goes_on_where_it_ended(account, talk):
    name = f"{NAME}-database"
    one = account.cloud.deploy(name, "multi-region", HERE)
    assert account.link()
    assert account.outputs(name)["DSQLClusterArn"] == one["DSQLClusterArn"]
    assert {account.outputs(name, region)["Phase"] for region in (HERE, THERE)} == {"linked"}
    assert [line for line in talk.lines if line.startswith("  make ")] == [
        f"  make {name} in us-east-2"
    ]


@pytest.mark.parametrize(
    ("regions", "witness", "said"),
    [
        ((HERE, HERE), WITNESS, "are the same"),
        ((HERE, THERE), HERE, "are the same"),
        ((HERE,), WITNESS, r"takes two, such as .* and got 1"),
        ((HERE, "eu-west-1"), WITNESS, "too far apart"),
        ((HERE, THERE), "ap-northeast-1", "too far apart"),
        ((HERE, "us-east-9"), WITNESS, "no Region that boto3 knows"),
    ],
)
def test_regions_that_do_not_go_together_are_refused(account, regions, witness, said):
    with pytest.raises(AwsError, match=said):
        account.link(regions=regions, witness=witness)
    assert account.stacks() == {}


def test_another_witness_or_peer_is_refused(account):
    account.link()
    with pytest.raises(AwsError, match="has us-west-2 as its witness, which cannot be changed"):
        account.link(witness="us-west-1")
    with pytest.raises(AwsError, match="is linked with us-east-2 already"):
        account.link(regions=(HERE, "us-west-1"))


def linked(account, monkeypatch, *given, region=HERE):
    """The workshop in both Regions."""
    monkeypatch.setattr(deploying, "build_package", account.builder)
    monkeypatch.setattr(deploying, "download_wheels", account.wheels)
    wish = Wish(given=("NotebookHost=no", *given), region=region, yes=True, function=False)
    return deploy_linked(wish, account.talk.console)


def test_the_workshop_is_deployed_in_both_regions_on_their_common_database(
    account, monkeypatch, talk
):
    before = {region: account.cloud.everything(region) for region in (HERE, THERE)}
    account.link()
    assert linked(account, monkeypatch)
    for region, network in {HERE: "10.0.0.0/16", THERE: "10.1.0.0/16"}.items():
        side = account.outputs(f"{NAME}-database", region)
        found = account.parameters(region=region)
        assert found["ClusterArn"] == side["DSQLClusterArn"]
        assert account.outputs(region=region)["DSQLClusterEndpoint"] == side["ClusterVpcEndpoint"]
        assert found["VpcCidr"] == network
        assert account.cloud.everything(region)["clusters"] == 1
    # From the other Region it is the same, and no network moves.
    assert linked(account, monkeypatch, region=THERE)
    assert account.parameters(region=THERE)["VpcCidr"] == "10.1.0.0/16"
    assert account.destroy(linked=True, yes=True)
    assert talk.lines.count("    not the database, which is not this stack's") == 2
    assert {region: account.cloud.everything(region) for region in (HERE, THERE)} == before


def test_the_workshop_in_both_regions_needs_a_linked_database(account, monkeypatch):
    with pytest.raises(AwsError, match="There is no linked database"):
        linked(account, monkeypatch)


def test_the_sides_of_a_database_go_together(account, talk):
    account.link()
    assert account.destroy(f"{NAME}-database", yes=True)
    assert f"  {NAME}-database in us-east-2: 1 resources" in talk.lines
    assert (account.stacks(HERE), account.stacks(THERE)) == ({}, {})


def test_a_database_without_its_workshop_is_not_forgotten(account, talk):
    account.link()
    assert account.destroy(yes=True)
    assert f"{NAME}-database (UPDATE_COMPLETE)" in talk.lines[-1]


# --- from the shell ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "--region", "us-esat-1"], "Did you mean"),
        (["deploy"], "No AWS Region is set"),
        (["deploy", "--region", HERE], "nothing here to sign in to AWS with. Sign in"),
        (["deploy", "--region", HERE, "-p", "Nope=1"], "has no parameter 'Nope'"),
        (["status", "--json", "--region", "x"], "no Region that boto3 knows"),
        (["destroy", "--yes", "--region", HERE], "nothing here to sign in to AWS with"),
        (["link", "--regions", f"{HERE},{THERE}", "--witness", WITNESS], "nothing here to sign"),
    ],
)
def test_without_an_account_each_ends_with_one_message(clean_environment, tmp_path, words, said):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        clean_environment.delenv(name)
    clean_environment.setenv("HOME", str(tmp_path))
    clean_environment.setattr(boto3, "DEFAULT_SESSION", None)
    done = CliRunner().invoke(main, ["aws", *words])
    assert done.exit_code == 1
    assert re.search(f"^Error: .*{said}", done.stderr, re.MULTILINE)
    assert isinstance(done.exception, SystemExit)


def test_status_as_json_is_json_and_nothing_else(account):
    account.deploy(host_files=False, function=False)
    done = run("status", "--region", HERE, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["status"] == "CREATE_COMPLETE"


def test_an_interrupt_says_that_aws_goes_on_by_itself(account, monkeypatch):
    def interrupt(watches, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploying, "follow", interrupt)
    done = run("deploy", "--region", HERE, "--no-function", "--yes")
    assert done.exit_code == 130
    assert (
        "AWS goes on by itself. How far it is: `workshop aws status --region us-east-1`."
        in done.output
    )


def run(*words):
    """A command in this process."""
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(main, ["aws", *words], prog_name="workshop")
    signal.signal(signal.SIGTERM, before)
    return done


def test_help_of_the_workshop_does_not_load_what_only_aws_needs():
    probe = (
        "import sys; from workshop_lib.cli import main\n"
        "try: main(['aws', '--help'])\nexcept SystemExit: pass\n"
        "print({'boto3', 'botocore', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("set()\n")
