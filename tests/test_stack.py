"""A stack's outputs as settings, and what is said when there are none."""

import pytest

from workshop_lib import stack
from workshop_lib.errors import SettingsError
from workshop_lib.settings import load_settings

OUTPUTS = {
    "DSQLClusterEndpoint": "abcdefghij.dsql-fnh4.eu-west-1.on.aws",
    "ValkeyEndpoint": "mine.serverless.euw1.cache.amazonaws.com",
    "BucketName": "my-bucket",
    "QueueUrl": "https://sqs.eu-west-1.amazonaws.com/123456789012/load",
    "LoadFunctionName": "workshop-load",
    "WorkshopNamespace": "ours",
    "VPCId": "vpc-1",
}


class Account:
    """Stands for AWS as far as stacks go."""

    def __init__(self):
        self.asked = 0
        self.outputs = dict(OUTPUTS)

    def describe(self, name, region):
        assert (name, region) == ("mine", "eu-west-1")
        self.asked += 1
        found = [{"OutputKey": k, "OutputValue": v} for k, v in self.outputs.items()]
        return {"StackStatus": "CREATE_IN_PROGRESS", "Outputs": found}


@pytest.fixture
def account(clean_environment):
    stack.read_outputs.cache_clear()
    found = Account()
    clean_environment.setattr(stack, "_describe", found.describe)
    clean_environment.setenv("WORKSHOP_STACK", "mine")
    clean_environment.setenv("AWS_REGION", "eu-west-1")
    clean_environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield found
    stack.read_outputs.cache_clear()


def test_the_outputs_are_settings_that_say_where_they_come_from(account):
    loaded = load_settings()
    settings = loaded.values
    assert settings.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]
    assert settings.valkey_endpoint == OUTPUTS["ValkeyEndpoint"]
    assert settings.bucket_name == "my-bucket"
    assert settings.queue_url.get_secret_value() == OUTPUTS["QueueUrl"]
    assert settings.load_function == "workshop-load"
    assert settings.workshop_namespace == "ours"
    assert loaded.sources["bucket_name"] == "stack mine"
    assert loaded.sources["aws_region"] == "environment"


def test_what_somebody_sets_wins_over_the_stack(account, monkeypatch):
    monkeypatch.setenv("WORKSHOP_NAMESPACE", "mine")
    assert load_settings(bucket_name="other").values.bucket_name == "other"
    assert load_settings().values.workshop_namespace == "mine"


def test_a_server_of_ones_own_takes_the_place_of_the_stacks(account):
    found = load_settings(
        database_url="postgresql://u:p@127.0.0.1/d",
        valkey_url="redis://127.0.0.1",
        load_function="",
    ).values
    assert found.dsql_endpoint is None
    assert found.valkey_endpoint is None
    assert found.bucket_name == "my-bucket"


def test_addresses_that_the_workshop_printed_leave_the_stacks_services_in_their_place(account):
    outputs = load_settings().values
    found = load_settings(
        database_url=f"postgresql://admin:token@{outputs.dsql_endpoint}:5432/postgres",
        valkey_url=f"rediss://{outputs.valkey_endpoint}:6379/0",
    ).values
    assert found.dsql_endpoint == outputs.dsql_endpoint
    assert found.valkey_endpoint == outputs.valkey_endpoint


def test_the_stack_is_asked_once(account):
    load_settings()
    load_settings(valkey_ttl=5)
    assert account.asked == 1


def test_without_a_stack_nobody_is_asked(account, monkeypatch):
    monkeypatch.delenv("WORKSHOP_STACK")
    assert load_settings().values.dsql_endpoint is None
    assert account.asked == 0


def test_the_region_of_boto3s_own_configuration_will_do(account, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert load_settings().values.aws_region == "eu-west-1"


def test_without_a_region_it_says_what_to_set(account, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="set AWS_REGION"):
        load_settings()


def test_a_stack_that_is_not_finished_says_so_and_is_asked_again(account):
    del account.outputs["DSQLClusterEndpoint"]
    with pytest.raises(SettingsError, match=r"CREATE_IN_PROGRESS.*DSQLClusterEndpoint.*wait"):
        load_settings()
    account.outputs = dict(OUTPUTS)
    assert load_settings().values.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]


def test_without_credentials_it_says_how_to_sign_in(clean_environment, tmp_path):
    stack.read_outputs.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        clean_environment.delenv(name, raising=False)
    clean_environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    clean_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    clean_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="aws sts get-caller-identity"):
        load_settings(workshop_stack="mine", aws_region="us-east-1")


def test_a_name_that_no_stack_can_have_is_refused_before_anybody_is_asked(account):
    with pytest.raises(SettingsError, match="WORKSHOP_STACK"):
        load_settings(workshop_stack="my stack")
    with pytest.raises(SettingsError, match="not a Region name"):
        load_settings(aws_region="Ireland")
    assert account.asked == 0
