"""The notebooks on AWS, as far as this machine has it: the package takes the path it takes there.

Nothing in the package knows of the stand-in. What it consists of stands in `standin/`.
"""

import json

import pytest
from stand_in import HOST, REGION, STACK

from workshop_lib import runner

ACCOUNT = "123456789012"
THE_SAME_THERE = ("02", "03", "04", "05", "06", "09", "12")
"""What these use of AWS, others use as well; some work in a sandbox of local engines anywhere."""
CHOSEN = [one.name for one in runner.find_notebooks() if not one.name.startswith(THE_SAME_THERE)]


@pytest.fixture(scope="module")
def executed(aws, function, tmp_path_factory):
    """One quick run as they are committed, with the notebooks' policy alone."""
    folder = tmp_path_factory.mktemp("run on aws")
    before = account(aws)
    fewer = ("-p", "rows=3001")  # notebook 07 updates them fifteen times over
    done = aws.run("run", "--workers", "1", *fewer, "--out", str(folder), *CHOSEN)
    return folder, done, before


@pytest.fixture(scope="module")
def results(executed):
    folder, _, _ = executed
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def account(aws):
    """What a run may use and has to leave as it was."""
    s3, sqs = aws.client("s3"), aws.client("sqs")
    bucket = aws.outputs["BucketName"]
    return {
        "objects": [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])],
        "queues": sqs.list_queues()["QueueUrls"],
        "waiting": [
            sqs.get_queue_attributes(
                QueueUrl=aws.outputs[queue], AttributeNames=["ApproximateNumberOfMessages"]
            )["Attributes"]["ApproximateNumberOfMessages"]
            for queue in ("QueueUrl", "DeadLetterQueueUrl")
        ],
    }


def test_the_notebooks_pass(executed):
    _, done, _ = executed
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    passed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✓")]
    assert sorted(passed) == CHOSEN


def test_the_results_say_that_it_was_aws_and_where(results):
    for name, result in results.items():
        services = result["services"]
        assert services["database"]["label"] == f"Aurora DSQL in {REGION}", name
        assert services["cache"]["label"] == "ElastiCache for Valkey", name
        assert services["store"]["label"] == f"Amazon S3 in {REGION}", name
        assert {one["embedded"] for one in list(services.values())[:3]} == {False}
        assert services["database"]["region"] == REGION
    assert results["11_load_reads_and_writes"]["services"]["messaging"]["label"] == (
        f"Amazon SQS and CloudWatch in {REGION}"
    )


def test_what_cannot_be_done_there_is_skipped_visibly(executed):
    folder, _, _ = executed
    name = "08_compare_cold_warm_pooled"
    assert "Skipped: an emulated latency of" in (folder / f"{name}.html").read_text()
    assert json.loads((folder / f"{name}.json").read_text())["latencies"] == []


def test_the_values_are_those_that_they_are_everywhere(results):
    figures = {
        name: {key: one["value"] for key, one in result["measurements"].items()}
        for name, result in results.items()
    }
    seeded = figures["01_seed_the_data"]
    assert (seeded["users_rows"], seeded["orders_rows"], seeded["objects"]) == (500, 2_500, 200)
    assert seeded["commits_for_transactions"] == 3  # 3,000 + 3,000 + 1,000
    checks = figures["00_check_the_deployment"]
    assert checks["checks"] == checks["checks_passed"] > 11  # AWS has more to be asked


def test_the_stacks_function_did_the_work_of_the_load_tests(aws, function, results):
    if not function:
        pytest.skip("the wheels of the function's package cannot be had here")
    queue = results["11_load_reads_and_writes"]["measurements"]
    assert queue["messages_succeeded"]["value"] == queue["messages_planned"]["value"] > 0
    assert sum(aws.mapping.batches) >= queue["messages_planned"]["value"]
    assert aws.function.calls > len(aws.mapping.batches) > 0  # notebook 10 invoked it as well
    assert {one.process.returncode for one in aws.function.environments} == {None}


def test_neither_account_nor_key_nor_token_is_kept_anywhere(executed):
    folder, done, _ = executed
    secret = (ACCOUNT, HOST["key"], HOST["secret"], "X-Amz-Signature", "X-Amz-Credential")
    texts = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert len(texts) > 3 * len(CHOSEN)
    for name, text in {**texts, "output": done.stdout.encode()}.items():
        assert [word for word in secret if word.encode() in text] == [], name


def test_a_run_leaves_nothing_behind(aws, executed, shared):
    *_, before = executed
    assert account(aws) == before
    schemas = shared.database.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^run_'")
    assert list(schemas) == []
    assert aws.keys("run_*") == []


def test_the_stack_gives_the_settings(aws):
    done = aws.run("check", "--json")
    checks = json.loads(done.stdout)["checks"]
    (settings,) = [one for one in checks if one["name"] == "Settings"]
    for name in ("DSQL_ENDPOINT", "VALKEY_ENDPOINT", "BUCKET_NAME", "QUEUE_URL"):
        assert f"{name} from stack {STACK}" in settings["detail"]
    assert done.returncode == 0
