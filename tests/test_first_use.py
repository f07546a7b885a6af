"""Setting the workshop up for AWS, once: from options, or from answers of a person."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from click.testing import CliRunner

from workshop_lib import cli
from workshop_lib.first_use import ask_for_services
from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import load_settings

ACCOUNT = "123456789012"
QUEUE = f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/load"
VALUES = {
    "aws_region": "us-east-1",
    "dsql_endpoint": "abcdefghij.dsql.us-east-1.on.aws",
    "valkey_endpoint": "mine.serverless.use1.cache.amazonaws.com",
    "bucket_name": "my-bucket",
}
REGION, DATABASE, CACHE, BUCKET = "--region", "--dsql-endpoint", "--valkey-endpoint", "--bucket"
OPTIONS = zip((REGION, DATABASE, CACHE, BUCKET), VALUES.values(), strict=True)
GIVEN = [word for option in OPTIONS for word in option]


@pytest.fixture
def file(clean_environment, tmp_path):
    """The settings file; there is none yet."""
    path = tmp_path / "mine.toml"
    clean_environment.setenv("WORKSHOP_CONFIG", str(path))
    return path


def setup(*words, code=0):
    done = CliRunner().invoke(cli.main, ["setup", *words, "--no-check"])
    assert done.exit_code == code, done.output
    return done.output


def test_what_is_given_is_kept_for_its_owner_only(file):
    said = setup(*GIVEN, "--queue-url", QUEUE)
    loaded = load_settings()
    assert {name: getattr(loaded.values, name) for name in VALUES} == VALUES
    assert loaded.values.queue_url.get_secret_value() == QUEUE
    assert set(loaded.sources.values()) == {f"file {file}"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.glob("*mine*")) == [file]
    assert "`workshop lab`" in said
    assert ACCOUNT not in said + setup("--local")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*GIVEN, REGION, "virginia"], "it has to look like us-east-1"),
        ([*GIVEN, DATABASE, "abc.dsql.eu-west-1.on.aws"], "DSQL_ENDPOINT is in eu-west-1"),
        (["--stack", "mine"], "AWS_REGION=''"),
        ([REGION, "us-east-1", BUCKET, "b-1"], "DSQL_ENDPOINT=''"),
    ],
)
def test_what_is_malformed_or_missing_is_refused_and_nothing_is_written(file, words, said):
    assert said in setup(*words, code=2)
    assert not file.exists()


def test_the_other_lines_and_comments_of_a_file_stay(file):
    file.write_text('# ours\nvalkey_ttl = 7  # short\nload_function = "own"\n')
    start = file.read_text()
    assert "\n  bucket_name = my-bucket\n" in setup(*GIVEN)
    assert file.read_text().startswith(f'{start}aws_region = "us-east-1"\n')
    setup("--local")
    assert file.read_text() == "# ours\nvalkey_ttl = 7  # short\n"


def test_a_stack_takes_the_place_of_the_endpoints_and_the_other_way_round(file):
    setup(*GIVEN)
    stack = [REGION, "us-east-1", "--stack", "mine"]
    setup(*stack)
    assert file.read_text() == 'aws_region = "us-east-1"\nworkshop_stack = "mine"\n'
    setup(*stack, "--queue-url", QUEUE)  # one thing that is not the stack's
    assert load_settings(workshop_stack="").values.queue_url
    setup(*GIVEN)
    assert "workshop_stack" not in file.read_text()


def test_local_leaves_a_store_of_ones_own_and_makes_no_file(file):
    assert setup("--local").startswith(f"Services on AWS in {file}: none\n")
    assert not file.exists()
    own = 'aws_endpoint_url_s3 = "http://127.0.0.1:9000"\nbucket_name = "own"\n'
    file.write_text(own)
    setup("--local")
    assert file.read_text() == own
    setup("--local", REGION, "us-east-1", code=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("valkey_ttl: 5\n", "mine.toml is unchanged"),
        ('database_url = "postgresql://u:hush-hush@127.0.0.1/d"\n', "DATABASE_URL are set"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_alone(file, text, said):
    file.write_text(text)
    answer = setup(*GIVEN, code=1)
    assert said in answer
    assert "hush-hush" not in answer
    assert file.read_text() == text


def test_a_file_that_cannot_be_written_is_said_and_a_link_stays_a_link(file, monkeypatch):
    file.symlink_to(file.with_name("real.toml"))
    setup(*GIVEN)
    assert file.is_symlink()
    assert "my-bucket" in file.with_name("real.toml").read_text()
    monkeypatch.setenv("WORKSHOP_CONFIG", str(file / "x.toml"))  # below a file
    assert "x.toml is unchanged" in setup(*GIVEN, code=1)


@pytest.mark.parametrize(
    ("given", "typed", "found"),
    [
        ({}, ["us-east-1", "mine"], {"aws_region": "us-east-1", "workshop_stack": "mine"}),
        (VALUES | {"bucket_name": " s3://my-bucket/"}, ["", QUEUE], VALUES | {"queue_url": QUEUE}),
    ],
)
def test_a_person_is_asked_for_what_is_not_given(given, typed, found):
    with CliRunner().isolation("".join(f"{line}\n" for line in typed)):
        answers = ask_for_services(given, ask=True)
    assert {name: answer for name, answer in answers.items() if answer} == found


def test_at_a_terminal_it_asks_again_until_a_value_can_be_used_and_writes(file):
    typed = ["virginia", "us-east-1", "", "", *list(VALUES.values())[1:], QUEUE]
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "workshop_lib", "setup", "--no-check"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=CHECKOUT)
    os.close(theirs)
    os.write(ours, "".join(f"{line}\n" for line in typed).encode())
    shown = b""
    with suppress(OSError):  # so Linux says that the other side is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(30) == 0
    assert b"bucket_name = my-bucket" in shown
    assert load_settings().values.queue_url.get_secret_value() == QUEUE
