"""Questions to ask a service one layer at a time: name, port, certificate, sign-in."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from workshop_lib.services.client_config import ca_bundle
from workshop_lib.services.endpoints import Endpoint, Endpoints

ANSWER_S = 5.0
BRIEF = Config(
    connect_timeout=ANSWER_S / 2, read_timeout=ANSWER_S, retries={"total_max_attempts": 1}
)
"""Of an AWS client whose answer, or silence, is itself what is asked for."""

E = TypeVar("E", bound=Endpoint)


def layers(endpoint: Endpoint) -> dict[str, Callable[[Endpoint], str]]:
    """The questions about a place, in the order in which each makes sense only after the last.

    Each answers with a detail to show, or raises.
    """
    asked: dict[str, Callable[[Endpoint], str]] = {} if endpoint.embedded else {"Name": look_up}
    asked["Port"] = knock
    if endpoint.tls:
        asked["Certificate"] = shake_hands
    return asked


def look_up(endpoint: Endpoint) -> str:
    """Whether the name is known."""
    number = len(_addresses(endpoint))
    return f"{number} address{'es' * (number != 1)}"


def knock(endpoint: Endpoint) -> str:
    """Whether something listens on the port."""
    _connect(endpoint).close()
    return "open"


def shake_hands(endpoint: Endpoint) -> str:
    """Whether the certificate is valid for the name."""
    if endpoint.kind == "database":
        return "verified by the database client when it connects"
    how = endpoint.arguments
    context = ssl.create_default_context(cafile=how.get("ssl_ca_certs") or ca_bundle())
    context.check_hostname = how.get("ssl_check_hostname", True)
    with _connect(endpoint) as raw:
        raw.settimeout(ANSWER_S)
        with context.wrap_socket(raw, server_hostname=endpoint.host) as secured:
            return f"valid, {secured.version()}"


def sign_in_service(endpoints: Endpoints) -> Endpoint:
    """AWS STS, which says as whom requests are signed."""
    region = endpoints.aws_region
    label = f"the sign-in service of AWS (STS) in {region or 'us-east-1'}"
    return Endpoint(label, "", 443, {"region_name": region, "config": BRIEF}, aws=True)


def who_am_i(sts: Endpoint) -> str:
    """Who AWS says we are, without the account's number: this is shown in saved notebooks."""
    arn = boto3.Session().client("sts", **sts.arguments).get_caller_identity()["Arn"]
    return "signed in as " + str(arn).rsplit(":", 1)[-1]


def briefly(endpoint: E) -> E:
    """The same place on AWS, for clients that wait for an answer once and not for long."""
    given: Config = endpoint.arguments["config"]
    return replace(endpoint, arguments={**endpoint.arguments, "config": given.merge(BRIEF)})


def _addresses(endpoint: Endpoint) -> set[Any]:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return {address[4][0] for address in found}


def _connect(endpoint: Endpoint) -> socket.socket:
    patience = min(ANSWER_S, float(endpoint.arguments.get("connect_timeout", ANSWER_S)))
    # Each address of a name is waited for in turn, so the wait is shared out.
    share = max(0.5, patience / len(_addresses(endpoint)))
    return socket.create_connection((endpoint.host, endpoint.port), timeout=share)
