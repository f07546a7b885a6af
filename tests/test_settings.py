import pytest

from workshop_lib.errors import SettingsError
from workshop_lib.settings import Settings, load_settings


def test_defaults_are_the_documented_ones(clean_environment):
    values = load_settings().values
    assert (values.valkey_ttl, values.query) == (30.0, "SELECT * FROM users1")
    assert (values.dsql_pool_min, values.dsql_pool_max, values.dsql_pool_timeout) == (5, 30, 30.0)
    assert values.workshop_namespace == "workshop"
    assert load_settings().sources == {}


def test_argument_wins_over_environment_wins_over_file(clean_environment, tmp_path):
    file = tmp_path / "workshop.toml"
    file.write_text('valkey_ttl = 7\nquery = "SELECT 1"\ndsql_pool_max = 9\n')
    clean_environment.setenv("VALKEY_TTL", "8")
    clean_environment.setenv("DSQL_POOL_MAX", "10")
    loaded = load_settings(dsql_pool_max=11)
    values = loaded.values
    assert (values.query, values.valkey_ttl, values.dsql_pool_max) == ("SELECT 1", 8.0, 11)
    assert loaded.sources == {
        "query": f"file {file}",
        "valkey_ttl": "environment",
        "dsql_pool_max": "argument",
    }
    shown = {name: (value, source) for name, value, source, _ in loaded.origins()}
    assert shown["VALKEY_TTL"] == ("8.0", "environment")
    assert shown["DSQL_POOL_MIN"] == ("5", "default")


def test_an_empty_variable_counts_as_unset_and_an_empty_argument_unsets(clean_environment):
    clean_environment.setenv("VALKEY_TTL", "")
    clean_environment.setenv("DATABASE_URL", "postgresql://x@127.0.0.1/x")
    values = load_settings(database_url="").values
    assert (values.valkey_ttl, values.database_url) == (30.0, None)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VALKEY_TTL", "soon", "VALKEY_TTL='soon' (from environment)"),
        ("VALKEY_TTL", "0", "greater than 0"),
        ("DSQL_POOL_MAX", "3", "DSQL_POOL_MIN (5) is larger than DSQL_POOL_MAX (3)"),
        ("AWS_REGION", "virginia", "it has to look like us-east-1"),
        ("DSQL_ENDPOINT", "example.com", "<cluster-id>.dsql.<region>.on.aws"),
        ("VALKEY_ENDPOINT", "example.com", ".cache.amazonaws.com"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1", "BUCKET_NAME is needed"),
        ("DSQL_ENDPOINT", "abc.dsql.us-east-1.on.aws", "AWS_REGION is needed"),
        ("WORKSHOP_NAMESPACE", "Drop Table", "String should match pattern"),
        ("WORKSHOP_LINGER_SECOND", "5", "Did you mean WORKSHOP_LINGER_SECONDS?"),
        ("VALKEY_TLL", "5", "Did you mean VALKEY_TTL?"),
    ],
)
def test_a_bad_value_or_name_is_refused_with_the_reason(clean_environment, name, value, said):
    clean_environment.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert said in str(refused.value)


def test_two_addresses_for_one_service_are_refused(clean_environment):
    clean_environment.setenv("VALKEY_ENDPOINT", "a.serverless.us-east-1.cache.amazonaws.com")
    clean_environment.setenv("REDIS_URL", "redis://127.0.0.1")
    with pytest.raises(SettingsError, match="both VALKEY_ENDPOINT and REDIS_URL are set"):
        load_settings()


def test_what_is_pasted_along_with_a_name_is_taken_off(clean_environment):
    cache = "a.serverless.us-east-1.cache.amazonaws.com"
    clean_environment.setenv("VALKEY_ENDPOINT", f" rediss://{cache}:6379 ")
    clean_environment.setenv("DSQL_ENDPOINT", "'abc.dsql.us-east-1.on.aws:5432'")
    clean_environment.setenv("AWS_REGION", "US-EAST-1")
    clean_environment.setenv("BUCKET_NAME", "s3://my-bucket/")
    values = load_settings().values
    assert (values.valkey_endpoint, values.aws_region) == (cache, "us-east-1")
    assert (values.dsql_endpoint, values.bucket_name) == ("abc.dsql.us-east-1.on.aws", "my-bucket")


@pytest.mark.parametrize("name", ["abc.dsql.eu-west-1.on.aws", "abc.dsql-x1.eu-west-1.on.aws"])
def test_a_database_in_another_region_is_refused(clean_environment, name):
    clean_environment.setenv("DSQL_ENDPOINT", name)
    clean_environment.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(SettingsError, match="DSQL_ENDPOINT is in eu-west-1, AWS_REGION is us-"):
        load_settings()
    assert load_settings(aws_region="eu-west-1").values.dsql_endpoint == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("valkey_tll = 5\n", r" valkey_tll=5 .*no such setting; did you mean valkey_ttl\?$"),
        ("colour = 5\n", r"no such setting\. There are: .*valkey_ttl.*\.$"),
        ("valkey_ttl: 5\n", r"workshop\.toml cannot be read"),
        (None, r"workshop\.toml, which does not exist as a file"),
    ],
)
def test_a_file_that_is_not_usable_is_refused(clean_environment, tmp_path, text, said):
    file = tmp_path / "workshop.toml"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_secrets_are_masked_wherever_settings_are_shown(clean_environment):
    clean_environment.setenv("DATABASE_URL", "postgresql://me:hush-hush@127.0.0.1/db")
    loaded = load_settings()
    assert "hush-hush" not in repr(loaded) + repr(loaded.origins()) + loaded._repr_html_()
    assert {name: value for name, value, *_ in loaded.origins()}["DATABASE_URL"] == "*" * 10
    clean_environment.setenv("VALKEY_TTL", "x")
    with pytest.raises(SettingsError) as refused:
        load_settings(queue_url="https://me:hush-hush@example.com")
    assert "hush-hush" not in str(refused.value)


def test_every_setting_says_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
