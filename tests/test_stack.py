"""A stack's outputs as settings, and what is said when there are none."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import pytest

from workshop_lib.errors import SettingsError
from workshop_lib.settings import load_settings
from workshop_lib.stack import read_outputs

OUTPUTS = {
    "DSQLClusterEndpoint": "abcdefghij.dsql-fnh4.eu-west-1.on.aws",
    "ValkeyEndpoint": "mine.serverless.euw1.cache.amazonaws.com",
    "BucketName": "my-bucket",
    "QueueUrl": "https://sqs.eu-west-1.amazonaws.com/123456789012/load",
    "LoadFunctionName": "workshop-load",
    "WorkshopNamespace": "ours",
    "VPCId": "vpc-1",
}


class Account(HTTPServer):
    """CloudFormation with one stack, "mine"."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), DescribeStacks)
        self.asked = 0
        self.outputs = dict(OUTPUTS)


class DescribeStacks(BaseHTTPRequestHandler):
    server: Account

    def do_POST(self):
        self.server.asked += 1
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        inner = "".join(
            f"<member><OutputKey>{k}</OutputKey><OutputValue>{v}</OutputValue></member>"
            for k, v in self.server.outputs.items()
        )
        inner = f"<StackStatus>CREATE_IN_PROGRESS</StackStatus><Outputs>{inner}</Outputs>"
        inner = f"<Stacks><member>{inner}</member></Stacks>"
        inner = f"<DescribeStacksResult>{inner}</DescribeStacksResult>"
        known = asked["StackName"] == ["mine"]
        self.send_response(200 if known else 400)
        self.end_headers()
        refusal = "<Error><Code>ValidationError</Code><Message>no such stack</Message></Error>"
        self.wfile.write(f"<Response>{inner if known else refusal}</Response>".encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def account(aws_environment):
    read_outputs.cache_clear()
    with Account() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{found.server_port}"
        aws_environment(WORKSHOP_STACK="mine", AWS_REGION="eu-west-1", AWS_ENDPOINT_URL=url)
        yield found
        found.shutdown()
        thread.join()
    read_outputs.cache_clear()


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


def test_a_stack_is_asked_once_and_nobody_where_none_is_named(account):
    load_settings()
    load_settings(valkey_ttl=5)
    assert account.asked == 1
    assert load_settings(workshop_stack="").values.dsql_endpoint is None
    assert account.asked == 1


def test_the_region_of_boto3s_own_configuration_will_do(account, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(SettingsError, match="set AWS_REGION"):
        load_settings()
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(SettingsError, match=r"profile \(nosuch\)"):
        load_settings()
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert load_settings().values.aws_region == "eu-west-1"


def test_a_stack_that_is_not_finished_says_so_and_is_asked_again(account):
    del account.outputs["DSQLClusterEndpoint"]
    with pytest.raises(SettingsError, match=r"CREATE_IN_PROGRESS.*DSQLClusterEndpoint.*wait"):
        load_settings()
    account.outputs = dict(OUTPUTS)
    assert load_settings().values.dsql_endpoint == OUTPUTS["DSQLClusterEndpoint"]


def test_a_stack_that_is_not_there_is_named_with_its_region(account):
    with pytest.raises(SettingsError, match="no stack 'yours' in eu-west-1"):
        load_settings(workshop_stack="yours")


def test_a_name_that_no_stack_can_have_is_refused_before_anybody_is_asked(account):
    with pytest.raises(SettingsError, match="WORKSHOP_STACK"):
        load_settings(workshop_stack="my stack")
    with pytest.raises(SettingsError, match="AWS_REGION"):
        load_settings(aws_region="Ireland")
    assert account.asked == 0
