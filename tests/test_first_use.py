"""Setting the workshop up for AWS, once: from options, or from answers of a person."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from workshop_lib import cli
from workshop_lib.errors import SettingsError
from workshop_lib.first_use import QUESTIONS, plan_aws, plan_local
from workshop_lib.settings import CHECKOUT, load_settings

ACCOUNT = "123456789012"
VALUES = {
    "aws_region": "us-east-1",
    "dsql_endpoint": "abcdefghij.dsql.us-east-1.on.aws",
    "valkey_endpoint": "mine.serverless.use1.cache.amazonaws.com",
    "bucket_name": "my-bucket",
}
QUEUE = f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/load"
OPTIONS = {question.setting: question.option for question in QUESTIONS}
GIVEN = [word for name, value in VALUES.items() for word in (OPTIONS[name], value)]


@pytest.fixture
def file(clean_environment, tmp_path):
    """The settings file; there is none yet."""
    path = tmp_path / "mine.toml"
    clean_environment.setenv("WORKSHOP_CONFIG", str(path))
    return path


def setup(*words, check=False):
    words = [*words] if check else [*words, "--no-check"]
    return CliRunner().invoke(cli.main, ["setup", *words])


class Person:
    """Gives these answers, and remembers what was asked and said."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []
        self.heard: list[str] = []

    def ask(self, text, default):
        self.asked.append((text, default))
        return self.answers.pop(0) or default

    def plan(self, **given):
        return plan_aws(given, self.ask, self.heard.append)


def test_what_is_given_is_saved_and_read_back(file):
    done = setup(*GIVEN, "--queue-url", QUEUE)
    assert done.exit_code == 0, done.output
    values = load_settings().values
    assert {name: getattr(values, name) for name in VALUES} == VALUES
    assert values.queue_url.get_secret_value() == QUEUE
    assert set(load_settings().sources.values()) == {f"file {file}"}
    assert "`workshop lab`" in done.output


def test_the_file_is_for_its_owner_only_and_no_draft_is_left(file):
    setup(*GIVEN)
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.glob("*mine*")) == [file]


def test_the_account_number_is_not_shown(file):
    assert ACCOUNT not in setup(*GIVEN, "--queue-url", QUEUE).output
    assert ACCOUNT not in setup("--local").output


@pytest.mark.parametrize(
    ("name", "pasted", "taken"),
    [
        ("aws_region", " US-EAST-1\n", "us-east-1"),
        ("dsql_endpoint", "abcdefghij.dsql.us-east-1.on.aws:5432", VALUES["dsql_endpoint"]),
        ("dsql_endpoint", "https://abcdefghij.dsql.us-east-1.on.aws/", VALUES["dsql_endpoint"]),
        ("valkey_endpoint", f"'{VALUES['valkey_endpoint']}:6379' ", VALUES["valkey_endpoint"]),
        ("valkey_endpoint", f"rediss://{VALUES['valkey_endpoint']}", VALUES["valkey_endpoint"]),
        ("bucket_name", "s3://my-bucket/", "my-bucket"),
        ("bucket_name", '"arn:aws:s3:::my-bucket"', "my-bucket"),
        ("queue_url", f" `{QUEUE}` ", QUEUE),
    ],
)
def test_what_is_pasted_along_is_taken_off_and_that_is_said(file, name, pasted, taken):
    done = setup(*GIVEN, OPTIONS[name], pasted)
    assert done.exit_code == 0, done.output
    assert f'{name} = "{taken}"\n' in file.read_text()
    assert f"{name.upper()} is taken as " in done.output


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("aws_region", "virginia", "(from --region): 'virginia' is not a Region name"),
        ("aws_region", "us-east-1a", "is not a Region name"),
        ("dsql_endpoint", "example.com", "<cluster-id>.dsql.<region>.on.aws"),
        ("dsql_endpoint", "abc.dsql.eu-west-1.on.aws", "DSQL_ENDPOINT is in eu-west-1"),
        ("valkey_endpoint", "mine.cache.amazonaws.com:6380", "not of the form"),
        ("bucket_name", "my bucket", "not the name of a bucket"),
        ("queue_url", "load", "<12 digits>/<name>"),
        ("queue_url", QUEUE.replace("us-east-1", "eu-west-1"), "QUEUE_URL is in eu-west-1"),
        ("workshop_stack", "my stack", "should match pattern"),
    ],
)
def test_a_malformed_value_is_refused_with_its_reason_and_nothing_is_written(
    file, name, value, said
):
    done = setup(*GIVEN, OPTIONS[name], value)
    assert done.exit_code == 1
    assert said in done.output
    assert not file.exists()


def test_a_region_that_there_is_not_is_refused_with_what_may_be_meant(file):
    done = setup(*["us-esat-1" if word == VALUES["aws_region"] else word for word in GIVEN])
    assert done.exit_code == 1
    assert "Did you mean" in done.output
    assert "us-east-1" in done.output
    assert not file.exists()


def test_a_stack_without_a_region_is_refused_where_nobody_can_be_asked(file):
    done = setup("--stack", "mine")
    assert done.exit_code == 1
    assert "--region" in done.output


def test_without_a_person_missing_values_are_listed_and_nobody_is_asked(file):
    done = setup("--region", "us-east-1", "--bucket", "b-1")
    assert done.exit_code == 1
    assert "--dsql-endpoint, --valkey-endpoint. Give them, or --stack" in done.output
    assert not file.exists()


def test_what_the_file_has_need_not_be_given_again(file):
    setup(*GIVEN)
    done = setup("--queue-url", QUEUE)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("+ queue_url = ")
    assert load_settings().values.bucket_name == "my-bucket"
    assert setup("--queue-url", "").output.startswith("- queue_url")
    assert load_settings().values.queue_url is None


def test_the_other_lines_and_comments_of_a_file_stay(file):
    file.write_text(
        '# ours\nvalkey_ttl = 7  # short\n\nbucket_name = "old-one"\nquery = "SELECT 1"'
    )
    done = setup(*GIVEN)
    assert "+ bucket_name = 'my-bucket' (was 'old-one')" in done.output
    text = file.read_text()
    start = '# ours\nvalkey_ttl = 7  # short\n\nbucket_name = "my-bucket"\nquery = "SELECT 1"\n'
    assert text.startswith(start)
    assert load_settings().values.valkey_ttl == 7


def test_doing_it_twice_changes_nothing(file):
    setup(*GIVEN)
    before = (file.read_text(), file.stat().st_mtime_ns)
    assert "Nothing to change" in setup(*GIVEN).output
    assert (file.read_text(), file.stat().st_mtime_ns) == before


def test_a_stack_takes_the_place_of_the_endpoints_and_the_other_way_round(file):
    setup(*GIVEN)
    assert setup("--stack", "mine").exit_code == 0
    assert file.read_text() == 'aws_region = "us-east-1"\nworkshop_stack = "mine"\n'
    assert setup("--queue-url", QUEUE).exit_code == 0  # one thing that is not the stack's
    assert "workshop_stack" in file.read_text()
    assert setup(*GIVEN).exit_code == 0
    assert "workshop_stack" not in file.read_text()


def test_local_takes_out_what_points_to_aws_and_nothing_else(file):
    file.write_text("valkey_ttl = 7\n")
    setup(*GIVEN)
    done = setup("--local")
    assert "- dsql_endpoint (was 'abcdefghij" in done.output
    assert file.read_text() == "valkey_ttl = 7\n"
    file.write_text('aws_endpoint_url_s3 = "http://127.0.0.1:9000"\nbucket_name = "own"\n')
    assert plan_local().changes == []
    assert setup("--local", "--region", "us-east-1").exit_code == 2


def test_a_file_that_cannot_be_used_is_left_alone(file):
    file.write_text("valkey_ttl: 5\n")
    done = setup(*GIVEN)
    assert (done.exit_code, file.read_text()) == (1, "valkey_ttl: 5\n")
    assert "mine.toml cannot be read" in done.output
    file.write_text('database_url = "postgresql://u:hush-hush@127.0.0.1/d"\n')
    done = setup(*GIVEN)
    assert "both DSQL_ENDPOINT and DATABASE_URL are set" in done.output
    assert "hush-hush" not in done.output


def test_a_folder_that_is_not_there_is_said(file, monkeypatch):
    monkeypatch.setenv("WORKSHOP_CONFIG", str(file.parent / "absent" / "x.toml"))
    done = setup(*GIVEN)
    assert done.exit_code == 1
    assert "cannot be written" in done.output


def test_what_fails_in_the_middle_leaves_the_old_file(file, monkeypatch):
    file.write_text("valkey_ttl = 7\n")

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left" in setup(*GIVEN).output
    assert [(p.name, p.read_text()) for p in file.parent.glob("*mine*")] == [
        ("mine.toml", "valkey_ttl = 7\n")
    ]


def test_a_link_to_the_file_stays_a_link(file):
    real = file.with_name("real.toml")
    real.write_text("")
    file.symlink_to(real)
    setup(*GIVEN)
    assert file.is_symlink()
    assert "my-bucket" in real.read_text()


def test_variables_that_win_over_the_file_are_pointed_out(file, monkeypatch):
    monkeypatch.setenv("BUCKET_NAME", "another")
    monkeypatch.setenv("AWS_REGION", "us-east-1")  # the same, so it does not matter
    done = setup(*GIVEN)
    assert "BUCKET_NAME is set here, and the environment wins: unset BUCKET_NAME" in done.output
    assert "AWS_REGION is set here" not in done.output
    assert "AWS_REGION is set here" in setup("--local").output


@pytest.mark.parametrize(("well", "code", "next_"), [(True, 0, "lab"), (False, 1, "check")])
def test_the_services_are_tried_at_the_end(file, monkeypatch, well, code, next_):
    monkeypatch.setattr(cli, "_check", lambda: well)
    done = setup(*GIVEN, check=True)
    assert done.exit_code == code
    assert f"`workshop {next_}`" in done.output.splitlines()[-1]


def test_the_settings_file_is_not_for_git():
    ignored = ["git", "check-ignore", "-q", "workshop.toml"]
    assert subprocess.run(ignored, cwd=CHECKOUT, check=False).returncode == 0


# --- where a person is there to answer ---


def test_a_person_is_asked_for_everything_in_turn(file):
    person = Person("us-east-1", "", *list(VALUES.values())[1:], "")
    assert person.plan().after == VALUES
    assert [text for text, _ in person.asked] == [
        "AWS Region, such as us-east-1",
        "Name of the workshop's stack (Enter for none)",
        "Endpoint of the Aurora DSQL cluster",
        "Endpoint of the ElastiCache for Valkey",
        "Name of the S3 bucket",
        "URL of the SQS queue for load tests (Enter for none)",
    ]
    assert person.heard == []


def test_a_wrong_answer_is_explained_and_asked_again(file):
    wrong = "abcdefghij.dsql.eu-west-1.on.aws"
    person = Person("virginia", "", "us-east-1", "-", wrong, *list(VALUES.values())[1:], "")
    assert person.plan().after == VALUES
    assert "is not a Region name" in person.heard[0]
    assert person.heard[1] == "AWS_REGION is needed."
    assert "DSQL_ENDPOINT is in eu-west-1, AWS_REGION is us-east-1" in person.heard[2]


def test_with_a_stack_nothing_else_is_asked(file):
    person = Person("us-east-1", "mine")
    assert person.plan().after == {"aws_region": "us-east-1", "workshop_stack": "mine"}
    person = Person()
    given = {"aws_region": "us-east-1", "workshop_stack": "mine"}
    assert person.plan(**given).after == given


def test_only_what_is_not_given_is_asked(file):
    person = Person("my-bucket", "")
    given = {name: value for name, value in VALUES.items() if name != "bucket_name"}
    assert person.plan(**given).after == VALUES
    assert len(person.asked) == 2


def test_what_the_file_says_is_the_default_and_a_dash_takes_it_away(file):
    setup(*GIVEN, "--queue-url", QUEUE)
    person = Person(*[""] * 6)
    assert person.plan().changes == []
    assert person.asked[2] == ("Endpoint of the Aurora DSQL cluster", VALUES["dsql_endpoint"])
    person = Person(*[""] * 5, "-")
    (change,) = person.plan().changes
    assert change.startswith("- queue_url")


def test_a_given_value_that_is_wrong_is_not_asked_again(file):
    with pytest.raises(SettingsError, match="not a Region name"):
        Person("us-east-1").plan(aws_region="virginia")


@pytest.mark.parametrize(("answer", "written"), [("y", True), ("n", False)])
def test_at_a_terminal_it_asks_shows_and_confirms(file, answer, written):
    typed = ["virginia", "us-east-1", "", *list(VALUES.values())[1:], QUEUE, answer]
    shown = at_a_terminal("setup", "--no-check", typed=typed)
    assert "is not a Region name" in shown
    assert "+ bucket_name = 'my-bucket'" in shown
    assert f"Write this to {file}?" in shown
    assert file.exists() is written
    assert (f"Written to {file}." in shown) is written


def at_a_terminal(*words, typed):
    """What a command shows to a person who types these lines."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "workshop_lib", *words]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "300"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=Path(CHECKOUT)
    )
    os.close(theirs)
    os.write(ours, "".join(f"{line}\n" for line in typed).encode())
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # so Linux says that the other side is closed
        pass
    finally:
        os.close(ours)
    process.wait(30)
    return shown.decode()
