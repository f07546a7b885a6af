"""What the settings for AWS turn into, as far as that can be seen without an account."""

import certifi
import pytest

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import diagnose, resolve
from workshop_lib.settings import load_settings

CLUSTER = "abcdefghij.dsql.us-east-1.on.aws"
CACHE = "mine.serverless.use1.cache.amazonaws.com"


@pytest.fixture
def aws(clean_environment, tmp_path):
    """Settings of a deployment on AWS, with credentials that sign but open nothing."""
    for name, value in {
        "AWS_REGION": "us-east-1",
        "DSQL_ENDPOINT": CLUSTER,
        "VALKEY_ENDPOINT": CACHE,
        "BUCKET_NAME": "my-bucket",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        clean_environment.setenv(name, value)
    clean_environment.delenv("AWS_CA_BUNDLE", raising=False)
    return clean_environment


def test_dsql_is_reached_as_admin_with_verified_tls_and_no_stored_password(aws):
    database = resolve(load_settings().values).database
    arguments = dict(database.arguments)
    assert arguments.pop("connect_timeout") <= 10
    wanted = {
        "host": CLUSTER,
        "port": 5432,
        "user": "admin",
        "dbname": "postgres",
        "sslmode": "verify-full",
        "sslrootcert": certifi.where(),
    }
    assert wanted.items() <= arguments.items()
    assert "password" not in arguments
    assert (database.tls, database.embedded, database.emulated) == (True, False, False)


def test_a_company_may_have_certificates_of_its_own(aws):
    aws.setenv("AWS_CA_BUNDLE", "/etc/ours.pem")
    found = resolve(load_settings().values)
    assert found.database.arguments["sslrootcert"] == "/etc/ours.pem"
    assert found.cache.arguments["ssl_ca_certs"] == "/etc/ours.pem"


def test_a_token_is_made_for_each_connection_without_network_and_lasts_15_minutes(aws):
    token = resolve(load_settings().values).database.token()
    assert token.startswith(f"{CLUSTER}/?Action=DbConnectAdmin")
    assert "X-Amz-Expires=900" in token
    assert "not-a-real-secret" not in token


def test_without_credentials_making_a_token_says_how_to_sign_in(aws):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    endpoints = resolve(load_settings().values)
    with pytest.raises(ServiceUnreachableError, match="aws sts get-caller-identity"):
        endpoints.database.token()


def test_the_cache_is_reached_over_tls_with_bounded_waits(aws):
    cache = resolve(load_settings().values).cache
    assert (cache.arguments["host"], cache.arguments["port"]) == (CACHE, 6379)
    assert cache.arguments["ssl"] is True
    assert "ssl_cert_reqs" not in cache.arguments  # the client's default is to verify
    assert cache.arguments["socket_timeout"] <= 5


def test_the_bucket_is_amazon_s3s_own(aws):
    store = resolve(load_settings().values).store
    assert (store.bucket, store.create_bucket, store.tls) == ("my-bucket", False, True)
    assert "endpoint_url" not in store.arguments
    assert "aws_secret_access_key" not in store.arguments


def test_no_secret_stands_in_what_is_shown_of_endpoints(aws):
    assert "not-a-real-secret" not in repr(resolve(load_settings().values))


def test_the_other_end_of_a_cluster_gets_tokens_for_its_own_region(aws):
    aws.setenv("DSQL_READ_ENDPOINT", "klmnopqrst.dsql.us-west-2.on.aws")
    reader = resolve(load_settings().values).reader
    assert reader.label == "Aurora DSQL in us-west-2"
    assert "us-west-2%2Fdsql" in reader.token()


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("mine.serverless.use1", "us-east-1"),
        ("mine.serverless.eu-west-1", "eu-west-1"),
        ("clustercfg.mine.abc123.apse2", "ap-southeast-2"),
        ("mine.abc123.ng.0001.euc1", "eu-central-1"),
        ("mine.serverless.mxc1", "mx-central-1"),
        ("mine.serverless.aps1", None),  # Mumbai or Singapore
        ("mine.serverless.xyz", None),
    ],
)
def test_the_region_of_a_cache_is_read_from_its_name_where_that_is_certain(name, region):
    assert diagnose.cache_region(f"{name}.cache.amazonaws.com") == region
