"""`workshop aws` from a shell, on the stand-in: real processes, TLS, signatures and permissions."""

import json

from stand_in import STACK

ACCOUNT = "123456789012"


def test_whoever_works_on_the_stack_may_look_at_it(aws):
    done = aws.run("aws", "status", "--stack", STACK, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["outputs"]["BucketName"] == aws.outputs["BucketName"]
    assert ACCOUNT not in done.stdout


def test_whoever_works_on_the_stack_may_not_change_it_and_is_told_so(aws):
    done = aws.run("aws", "deploy", "--stack", STACK)
    assert done.returncode == 1
    assert "✗ Template" in done.stdout
    assert "is not authorized to perform: cloudformation:ValidateTemplate" in done.stderr
    assert "You may not do this. Ask the account's administrator" in done.stderr
    assert ACCOUNT not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_administrator_sees_that_there_is_nothing_to_change(aws):
    done = aws.run("aws", "deploy", "--stack", STACK, "--no-function", "--dry-run", who="admin")
    assert done.stdout.splitlines()[-2:] == [
        f"✓ Stack        {STACK} is CREATE_COMPLETE",
        "Nothing to change.",
    ]
    assert done.returncode == 0


def test_a_change_without_somebody_to_ask_is_shown_and_not_done(aws):
    words = ("--stack", STACK, "--no-function", "-p", "LogDays=3")
    done = aws.run("aws", "deploy", *words, who="admin")
    assert done.returncode == 1
    assert f"Changing {STACK} in us-east-1:" in done.stdout
    assert "there is no terminal to answer at. Nothing was changed." in done.stderr
    (stack,) = aws.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
    assert {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}[
        "LogDays"
    ] == "7"


def test_a_stack_goes_with_all_it_holds_and_going_twice_is_no_fault(aws):
    """By a real process: made, filled, refused without an answer, deleted, and not there."""
    there = aws.client("cloudformation"), aws.client("s3")
    buckets = len(there[1].list_buckets()["Buckets"])
    words = ("--stack", "throw-away")
    done = aws.run(
        *("aws", "deploy", *words, "--yes", "--no-function", "--no-host-files"),
        *("-p", "NotebookHost=no"),
        who="admin",
        WORKSHOP_STACK="",
    )
    assert done.returncode == 0, done.stderr
    assert "200 objects loaded" in done.stdout
    assert len(there[1].list_buckets()["Buckets"]) == buckets + 1
    refused = aws.run("aws", "destroy", *words, who="admin")
    assert refused.returncode == 1
    assert "--yes answers beforehand" in refused.stderr
    gone = aws.run("aws", "destroy", *words, "--yes", who="admin")
    assert gone.returncode == 0, gone.stderr
    assert "the bucket with 200 objects" in gone.stdout
    assert "throw-away in us-east-1 is deleted. What remains of it:" in gone.stdout
    assert len(there[1].list_buckets()["Buckets"]) == buckets
    again = aws.run("aws", "destroy", *words, "--yes", who="admin")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to delete" in again.stdout
