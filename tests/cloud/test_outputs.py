"""A stack's outputs as settings, and what is said when there are none."""

import json

import pytest

from workshop_lib.aws.outputs import read_outputs
from workshop_lib.errors import SettingsError
from workshop_lib.settings import load_settings

OUTPUTS = {
    "DSQLClusterEndpoint": "abcdefghij.dsql-fnh4.us-east-1.on.aws",
    "ValkeyEndpoint": "mine.serverless.use1.cache.amazonaws.com",
    "BucketName": "my-bucket",
    "QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/load",
    "LoadFunctionName": "workshop-load",
    "WorkshopNamespace": "ours",
    "VPCId": "vpc-1",
}


@pytest.fixture
def stack(aws_environment, cloud):
    """Make the stack "mine" with these outputs; as settings name it."""

    def make(outputs):
        template = {
            "Resources": {"One": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        stacks = cloud.client("cloudformation")
        stacks.delete_stack(StackName="mine")
        stacks.create_stack(StackName="mine", TemplateBody=json.dumps(template))

    aws_environment(WORKSHOP_STACK="mine", AWS_REGION="us-east-1")
    read_outputs.cache_clear()
    make(OUTPUTS)
    yield make
    read_outputs.cache_clear()


def test_the_outputs_are_settings_that_say_where_they_come_from_and_give_way(stack, monkeypatch):
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
    monkeypatch.setenv("WORKSHOP_NAMESPACE", "mine")
    own = {"database_url": "postgresql://u:p@127.0.0.1/d", "valkey_url": "redis://127.0.0.1"}
    found = load_settings(bucket_name="other", load_function="", **own).values
    assert (found.bucket_name, found.workshop_namespace) == ("other", "mine")
    assert (found.dsql_endpoint, found.valkey_endpoint) == (None, None)
    assert found.queue_url
    # The Region may come from boto3's own configuration.
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert load_settings().values.aws_region == "us-east-1"


def test_addresses_that_the_workshop_printed_leave_the_stacks_services_in_their_place(stack):
    found = load_settings(
        database_url=f"postgresql://admin:token@{OUTPUTS['DSQLClusterEndpoint']}:5432/postgres",
        valkey_url=f"rediss://{OUTPUTS['ValkeyEndpoint']}:6379/0",
    ).values
    assert found.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]
    assert found.valkey_endpoint == OUTPUTS["ValkeyEndpoint"]


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        ({"workshop_stack": "yours"}, {}, "'yours'.*us-east-1.*create it, or correct WORKSHOP_S"),
        ({"aws_region": "Ireland"}, {}, "AWS_REGION"),
        ({}, {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "AWS_REGION"),
        ({}, {"AWS_REGION": "", "AWS_PROFILE": "nosuch"}, r"profile \(nosuch\)"),
    ],
)
def test_what_leads_to_no_stack_is_named(stack, monkeypatch, given, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        load_settings(**given)


def test_a_stack_is_asked_again_until_it_has_what_is_needed_and_then_no_more(stack):
    stack({name: value for name, value in OUTPUTS.items() if name != "DSQLClusterEndpoint"})
    with pytest.raises(SettingsError, match=r"COMPLETE and has no output DSQLClusterEndpoint"):
        load_settings()
    stack(OUTPUTS)
    assert load_settings().values.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]
    stack({})
    assert load_settings(valkey_ttl=5).values.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]
    assert load_settings(workshop_stack="").values.dsql_endpoint is None
