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


def test_an_empty_variable_counts_as_unset(clean_environment):
    clean_environment.setenv("VALKEY_TTL", "")
    assert load_settings().values.valkey_ttl == 30.0


def test_an_empty_argument_unsets_what_the_environment_says(clean_environment):
    clean_environment.setenv("DATABASE_URL", "postgresql://x@127.0.0.1/x")
    assert load_settings(database_url="").values.database_url is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VALKEY_TTL", "soon", "VALKEY_TTL='soon' (from environment)"),
        ("VALKEY_TTL", "0", "greater than 0"),
        ("DSQL_POOL_MAX", "3", "DSQL_POOL_MIN (5) is larger than DSQL_POOL_MAX (3)"),
        ("AWS_REGION", "virginia", "not a Region name such as us-east-1"),
        ("DSQL_ENDPOINT", "example.com", "<cluster-id>.dsql.<region>.on.aws"),
        ("VALKEY_ENDPOINT", "example.com", ".cache.amazonaws.com"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1", "BUCKET_NAME is needed"),
        ("DSQL_ENDPOINT", "abc.dsql.us-east-1.on.aws", "AWS_REGION is needed"),
        ("WORKSHOP_NAMESPACE", "Drop Table", "String should match pattern"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_reason(clean_environment, name, value, said):
    clean_environment.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert said in str(refused.value)


def test_two_addresses_for_one_service_are_refused(clean_environment):
    clean_environment.setenv("VALKEY_ENDPOINT", "a.serverless.us-east-1.cache.amazonaws.com")
    clean_environment.setenv("REDIS_URL", "redis://127.0.0.1")
    with pytest.raises(SettingsError, match="VALKEY_ENDPOINT and VALKEY_URL"):
        load_settings()


def test_a_pasted_port_and_blanks_are_taken_off_endpoints(clean_environment):
    clean_environment.setenv("VALKEY_ENDPOINT", " a.serverless.us-east-1.cache.amazonaws.com:6379 ")
    clean_environment.setenv("DSQL_ENDPOINT", "abc.dsql.us-east-1.on.aws:5432")
    clean_environment.setenv("AWS_REGION", "us-east-1")
    values = load_settings().values
    assert values.valkey_endpoint == "a.serverless.us-east-1.cache.amazonaws.com"
    assert values.dsql_endpoint == "abc.dsql.us-east-1.on.aws"


@pytest.mark.parametrize("name", ["abc.dsql.eu-west-1.on.aws", "abc.dsql-x1.eu-west-1.on.aws"])
def test_a_database_in_another_region_is_refused(clean_environment, name):
    clean_environment.setenv("DSQL_ENDPOINT", name)
    clean_environment.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(SettingsError, match="DSQL_ENDPOINT is in eu-west-1, AWS_REGION is us-"):
        load_settings()
    clean_environment.setenv("AWS_REGION", "eu-west-1")
    assert load_settings().values.dsql_endpoint == name


def test_an_unknown_key_in_the_file_is_refused_with_the_known_ones(clean_environment, tmp_path):
    (tmp_path / "workshop.toml").write_text("valkey_tll = 5\n")
    with pytest.raises(SettingsError, match=r"no such setting.*valkey_ttl"):
        load_settings()


def test_a_file_that_is_not_toml_is_refused_with_its_name(clean_environment, tmp_path):
    (tmp_path / "workshop.toml").write_text("valkey_ttl: 5\n")
    with pytest.raises(SettingsError, match=r"workshop\.toml cannot be read"):
        load_settings()


def test_a_named_file_that_is_missing_is_refused(clean_environment, tmp_path):
    clean_environment.setenv("WORKSHOP_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(SettingsError, match=r"absent\.toml, which does not exist"):
        load_settings()


def test_secrets_are_masked_wherever_settings_are_shown(clean_environment):
    clean_environment.setenv("DATABASE_URL", "postgresql://me:hush-hush@127.0.0.1/db")
    loaded = load_settings()
    assert "hush-hush" not in repr(loaded) + repr(loaded.origins())
    assert {o.name: o.value for o in loaded.origins()}["DATABASE_URL"] == "••••••"


def test_a_bad_secret_is_not_repeated_in_the_error(clean_environment):
    clean_environment.setenv("DATABASE_URL", "postgresql://me:hush-hush@127.0.0.1/db")
    clean_environment.setenv("VALKEY_TTL", "x")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hush-hush" not in str(refused.value)


def test_every_setting_says_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
