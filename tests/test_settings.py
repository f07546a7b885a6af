"""Settings: where each value comes from, and what is refused with the reason."""

import pytest

from workshop_lib.errors import SettingsError
from workshop_lib.settings import load_settings

CACHE = "a.serverless.us-east-1.cache.amazonaws.com"
QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/load-test"
CLUSTER, ELSEWHERE = "abc.dsql.us-east-1.on.aws", "abc.dsql-x1.eu-west-1.on.aws"


@pytest.fixture
def given(clean_environment):
    """Sets variables."""

    def given(**variables):
        for name, value in variables.items():
            clean_environment.setenv(name, value)

    return given


def test_argument_wins_over_environment_wins_over_file(given, tmp_path):
    file = tmp_path / "workshop.toml"
    file.write_text('valkey_ttl = 7\nquery = "SELECT 1"\ndsql_pool_max = 9\n')
    given(VALKEY_TTL="8", DSQL_POOL_MAX="10", WORKSHOP_CACHE_MB="", DATABASE_URL="postgresql://x/x")
    loaded = load_settings(dsql_pool_max=11, database_url="")
    values = loaded.values
    assert (values.query, values.valkey_ttl, values.dsql_pool_max) == ("SELECT 1", 8.0, 11)
    # An empty variable counts as unset, and an empty argument unsets.
    assert (values.workshop_cache_mb, values.database_url) == (64, None)
    assert loaded.sources == {
        "valkey_ttl": "environment", "query": f"file {file}", "dsql_pool_max": "argument",
        "database_url": "argument",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"VALKEY_TTL": "soon"}, "VALKEY_TTL='soon' (from environment): "),
        ({"WORKSHOP_NAMESPACE": "Drop Table"}, "it has to look like my_namespace"),
        ({"DSQL_POOL_MAX": "3"}, "DSQL_POOL_MIN (5) is larger than DSQL_POOL_MAX (3)"),
        ({"AWS_REGION": "virginia", "BUCKET_NAME": "my-bucket"}, "it has to look like us-east-1"),
        ({"DSQL_ENDPOINT": "example.com"}, "<cluster-id>.dsql.<region>.on.aws"),
        ({"VALKEY_ENDPOINT": "example.com"}, ".cache.amazonaws.com"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "BUCKET_NAME is needed"),
        ({"DSQL_ENDPOINT": CLUSTER}, "AWS_REGION is needed"),
        (
            {"DSQL_ENDPOINT": ELSEWHERE, "AWS_REGION": "us-east-1"},
            "DSQL_ENDPOINT is in eu-west-1, AWS_REGION is us-east-1",
        ),
        ({"VALKEY_ENDPOINT": CACHE, "REDIS_URL": "redis://h"}, "and REDIS_URL are set"),
        ({"QUEUE_URL": f"{QUEUE}.fifo", "AWS_REGION": "us-east-1"}, "<12 digits>/<name>"),
        ({"QUEUE_URL": QUEUE, "AWS_REGION": "eu-west-1"}, "QUEUE_URL is in us-east-1"),
        ({"VALKEY_TLL": "5"}, "Did you mean VALKEY_TTL?"),
    ],
)
def test_a_bad_value_or_name_is_refused_with_the_reason(given, variables, said):
    given(**variables)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert said in str(refused.value)
    assert "123456789012" not in str(refused.value)


def test_defaults_have_no_source_and_a_region_of_another_program_is_no_matter(given):
    given(AWS_REGION="mars-1")  # nothing is on AWS
    loaded = load_settings()
    assert (loaded.values.aws_region, loaded.sources) == (None, {})


def test_what_is_pasted_along_with_a_name_is_taken_off(given):
    given(VALKEY_ENDPOINT=f" rediss://{CACHE}:6379 ", DSQL_ENDPOINT=f"'{CLUSTER}:5432'")
    given(AWS_REGION="US-EAST-1", BUCKET_NAME="s3://my-bucket/")
    values = load_settings().values
    assert (values.valkey_endpoint, values.aws_region) == (CACHE, "us-east-1")
    assert (values.dsql_endpoint, values.bucket_name) == (CLUSTER, "my-bucket")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 5\n", r" colour=5 .*no such setting\. There are: .*valkey_ttl.*\.$"),
        ("valkey_ttl: 5\n", r"workshop\.toml cannot be read"),
        (None, r"workshop\.toml, which does not exist as a file"),
    ],
)
def test_a_file_that_is_not_usable_is_refused(given, tmp_path, text, said):
    file = tmp_path / "workshop.toml"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_secrets_are_masked_wherever_settings_are_shown(given):
    given(DATABASE_URL="postgresql://me:hush-hush@127.0.0.1/db")
    given(QUEUE_URL=QUEUE, AWS_REGION="us-east-1")
    shown = repr(load_settings())
    assert "hush-hush" not in shown
    assert "123456789012" not in shown
    with pytest.raises(SettingsError) as refused:
        load_settings(queue_url="https://me:hush-hush@example.com")
    assert "hush-hush" not in str(refused.value)
