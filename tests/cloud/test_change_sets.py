"""What would change, told before it does; what is thrown away; what a stack would cost."""

import gzip
import io
import subprocess
import tarfile
import zipfile

import pytest
from botocore.exceptions import ClientError

from workshop_lib.aws import host_files, wheels
from workshop_lib.aws.change_sets import Change, ChangeSet, change_lines, prepare
from workshop_lib.aws.pricing import per_hour
from workshop_lib.aws.stacks import Stack
from workshop_lib.aws.template import read_template
from workshop_lib.errors import AwsError

WORKSHOP = read_template("workshop")
STACK_ID = "arn:aws:cloudformation:us-east-1:123456789012:stack/workshop/1"
BEFORE = Stack(
    "workshop", STACK_ID, "us-east-1", "CREATE_COMPLETE", "", WORKSHOP.description,
    {"LogDays": "7", "MaxReceives": "3", "OfAnOlderTemplate": "x"}, {}, guarded=False,
)  # fmt: skip


class CloudFormation:
    """Answers as scripted, and remembers what it was told."""

    def __init__(self, *described, refuse=None):
        self.described, self.refuse = list(described), refuse
        self.calls = []

    def create_change_set(self, **request):
        self.calls.append(("create", request))
        if self.refuse:
            raise self.refuse
        return {"Id": "set-1", "StackId": STACK_ID}

    def describe_change_set(self, **_):
        return {"ChangeSetId": "set-1", "Changes": [], **self.described.pop(0)}

    def delete_change_set(self, **request):
        self.calls.append(("delete change set", request))

    def delete_stack(self, **request):
        self.calls.append(("delete stack", request))

    @property
    def tidied(self):
        return [name for name, _ in self.calls[1:]]


def refusal(code, message):
    return ClientError({"Error": {"Code": code, "Message": message}}, "CreateChangeSet")


def ask(client, talk, before=None, **parameters):
    return prepare(client, "workshop", WORKSHOP, parameters, before=before, console=talk.console)


def test_an_update_gives_what_is_given_and_keeps_the_rest_of_what_the_template_knows(talk):
    client = CloudFormation({"Status": "CREATE_COMPLETE"})
    assert ask(client, talk, BEFORE, LogDays="3").makes is False
    ((_, request),) = client.calls
    assert request["ChangeSetType"] == "UPDATE"
    assert request["Parameters"] == [
        {"ParameterKey": "LogDays", "ParameterValue": "3"},
        {"ParameterKey": "MaxReceives", "UsePreviousValue": True},
    ]


@pytest.mark.parametrize(
    "reason",
    [
        "The submitted information didn't contain changes. Submit different information.",
        "No updates are to be performed.",
    ],
)
def test_a_change_set_without_changes_is_none_and_is_thrown_away(talk, reason):
    client = CloudFormation({"Status": "FAILED", "StatusReason": reason})
    assert ask(client, talk, BEFORE) is None
    assert client.tidied == ["delete change set"]
    refused = CloudFormation(refuse=refusal("ValidationError", reason))
    assert ask(refused, talk, BEFORE) is None


def test_a_change_set_that_fails_is_explained_and_leaves_no_stack_on_paper(talk):
    client = CloudFormation(
        {"Status": "FAILED", "StatusReason": "With ClusterArn, ClusterVpcEndpoint is needed too."}
    )
    with pytest.raises(AwsError) as caught:
        ask(client, talk)
    assert str(caught.value) == (
        "CloudFormation cannot change workshop like this: With ClusterArn, ClusterVpcEndpoint is "
        "needed too. Nothing was changed."
    )
    assert client.tidied == ["delete change set", "delete stack"]


def test_changes_are_told_apart_and_lost_data_loudly():
    changes = [
        Change("change", "Queue", "AWS::SQS::Queue", "False"),
        Change("change", "Cluster", "AWS::DSQL::Cluster", "True"),
        Change("change", "NotebookInstance", "AWS::EC2::Instance", "Conditional"),
        Change("remove", "Bucket", "AWS::S3::Bucket", "False"),
        Change("add", "Nat", "AWS::EC2::NatGateway", "False"),
        Change("add", "A", "AWS::EC2::VPCEndpoint", "False"),
        Change("add", "B", "AWS::EC2::VPCEndpoint", "False"),
    ]
    disk = "the notebook host's disk with what you wrote on it"
    assert change_lines(ChangeSet("set-1", STACK_ID, makes=False, changes=tuple(changes))) == [
        "  change      Queue (AWS::SQS::Queue)",
        "  REPLACE     Cluster (AWS::DSQL::Cluster)",
        "  may REPLACE NotebookInstance (AWS::EC2::Instance)",
        "  remove      Bucket (AWS::S3::Bucket)",
        "  add         AWS::EC2::NatGateway: Nat",
        "  add         AWS::EC2::VPCEndpoint: A, B",
        "  WARNING: Cluster is replaced. Then the database with all its tables is LOST.",
        f"  WARNING: NotebookInstance may be replaced. Then {disk} is LOST.",
        "  WARNING: Bucket is removed. Then the bucket with all its objects is LOST.",
    ]


# --- prices ---


def cost(**parameters):
    return per_hour(WORKSHOP, {**WORKSHOP.defaults(), "S3PrefixListId": "pl-1", **parameters})


def test_the_price_as_it_comes_is_the_one_in_the_templates_description():
    assert "about 0.14 USD an hour" in WORKSHOP.description
    assert f"{cost():.2f}" == "0.14"


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({"NotebookHost": "no"}, -0.0336 - 0.0022),
        ({"NatGateway": "yes"}, 0.045 + 0.005 - 8 * 0.01),
        ({"NotebookHostSize": "xlarge"}, 3 * 0.0336),
        ({"Architecture": "x86_64"}, 0.0416 - 0.0336),
        ({"Architecture": "x86_64", "NotebookHostSize": "large"}, 2 * 0.0416 - 0.0336),
        ({"CodeKey": "worker.zip"}, 0.00014),
        ({"ClusterArn": "arn"}, 0),
    ],
)
def test_each_choice_changes_the_price_by_what_it_adds(parameters, more):
    assert cost(**parameters) - cost() == pytest.approx(more)


# --- words ---


# --- what the host fetches ---


def names(packed):
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as archive:
        return set(archive.getnames())


@pytest.fixture
def checkout(tmp_path):
    for name in ("README.md", "workshop_lib/a.py", "workshop_lib/__pycache__/a.pyc",
                 "results/x.json", ".venv/bin/python"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_without_git_the_workshop_is_packed_without_what_runs_left(checkout):
    packed = host_files.pack_workshop(checkout)
    assert names(packed) == {"README.md", "workshop_lib", "workshop_lib/a.py"}
    assert host_files.pack_workshop(checkout) == packed
    assert not host_files.uncommitted(checkout)


def test_with_git_it_is_what_was_committed(checkout):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", "-C", checkout, *who, *words], check=True, capture_output=True)

    git("init")
    git("add", "README.md")
    git("commit", "-m", "first")
    packed = host_files.pack_workshop(checkout)
    assert "README.md" in names(packed)
    assert "workshop_lib" not in names(packed)
    assert host_files.pack_workshop(checkout) == packed
    assert host_files.uncommitted(checkout)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A workshop that needs little, an index of wheels, and what is fetched from it."""
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["builder"]\n'
        '[project]\ndependencies = ["first[more]", "other ; sys_platform == \'win32\'"]\n'
    )
    (tmp_path / "constraints.txt").write_text(
        "# pins\nbuilder==1\nfirst==1\nsecond==1 ; python_full_version < '3.12'\n"
        "second==2 ; python_full_version >= '3.12'\nthird==1\nfourth==1\nunused==1\n"
    )
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index, "builder")
    make_wheel(index, "first", ["second", "third ; extra == 'more'", "unused ; extra == 'x'"])
    make_wheel(index, "second", version="1")
    # Asked for again, now with more.
    make_wheel(index, "second", ["first", "fourth ; python_version >= '3.12'"], version="2")
    make_wheel(index, "third", ["unused ; platform_machine == 'riscv64'"], tag="cp312-aarch64")
    make_wheel(index, "fourth", ["first[more]"])
    make_wheel(index, "unused")
    monkeypatch.setattr(wheels, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def make_wheel(folder, name, needs=(), *, version="1", tag=""):
    full = "cp312-cp312-manylinux_2_28_aarch64" if tag else "py3-none-any"
    notes = f"{name}-{version}.dist-info"
    told = "".join(f"Requires-Dist: {one}\n" for one in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-{full}.whl", "w") as archive:
        archive.writestr(
            f"{notes}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{told}"
        )
        archive.writestr(
            f"{notes}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {full}\n"
        )
        archive.writestr(f"{notes}/RECORD", "")


def test_what_a_host_needs_is_decided_by_its_python_and_not_by_the_one_that_runs_here(elsewhere):
    wheels.download_wheels(elsewhere, "arm64", "3.12")
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "builder-1-py3-none-any.whl",
        "first-1-py3-none-any.whl",
        "fourth-1-py3-none-any.whl",
        "second-2-py3-none-any.whl",
        "third-1-cp312-cp312-manylinux_2_28_aarch64.whl",
    ]
