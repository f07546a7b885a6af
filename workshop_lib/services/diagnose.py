"""Questions to ask a service one layer at a time: name, port, certificate, sign-in."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import boto3
from botocore.config import Config

from workshop_lib.services.endpoints import Endpoint, Endpoints
from workshop_lib.services.trust import trusted_certificates

ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        name: what is asked.
        ask: answers with a detail to show, or raises.
        advice: what to do when it raises.

    """

    name: str
    ask: Callable[[], str]
    advice: str


def probes(endpoints: Endpoints) -> list[Probe]:
    """The questions that make sense for these endpoints, in the order in which faults show."""
    found = list(_identity(endpoints))
    for endpoint in endpoints.all:
        found.extend(_network(endpoint))
    token = endpoints.database.token
    if token is not None:
        make = token
        found.append(
            Probe(
                "Sign-in token for the database",
                lambda: f"made locally, {len(make())} characters (not shown)",
                "No credentials were found to sign with. Sign in (aws sso login, or a role of this "
                "machine), then try `aws sts get-caller-identity`.",
            )
        )
    return found


def _network(endpoint: Endpoint) -> Iterator[Probe]:
    place = f"{endpoint.label} at {endpoint.address}"
    if not endpoint.embedded:
        yield Probe(
            f"Name of {place}",
            lambda: _look_up(endpoint),
            "The host name is unknown here. Check it for typing mistakes; names inside a VPC are "
            "known only inside it (run this from a host or CloudShell environment in the VPC).",
        )
    yield Probe(
        f"Port of {place}",
        lambda: _knock(endpoint),
        "The local engine died a moment ago: run the check again, it restarts the engine."
        if endpoint.embedded
        else "Refused: nothing listens there, so check the address and port. Silence: a firewall "
        f"drops the packets. On AWS that is a security group: allow inbound port {endpoint.port} "
        "from the security group of the machine you are on.",
    )
    if endpoint.tls:
        yield Probe(
            f"Certificate of {place}",
            lambda: _shake_hands(endpoint),
            "The server's certificate is not valid for this name. Use the endpoint's own name (not "
            "an alias or an address), and do not switch verification off.",
        )


def _identity(endpoints: Endpoints) -> Iterator[Probe]:
    if endpoints.database.token is None:
        return
    yield Probe(
        "AWS identity",
        lambda: _caller(endpoints.aws_region),
        "AWS does not know who you are: sign in again (an expired session says ExpiredToken), or "
        "check AWS_PROFILE. A hang here means no route to STS: an endpoint or NAT is missing.",
    )


def _look_up(endpoint: Endpoint) -> str:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return f"{len({address[4][0] for address in found})} address(es)"


def _knock(endpoint: Endpoint) -> str:
    patience = min(ANSWER_S, float(endpoint.arguments.get("connect_timeout", ANSWER_S)))
    socket.create_connection((endpoint.host, endpoint.port), timeout=patience).close()
    return "open"


def _shake_hands(endpoint: Endpoint) -> str:
    if endpoint.port == 5432:
        return "verified by the database client when it connects"
    context = ssl.create_default_context(cafile=trusted_certificates())
    with (
        socket.create_connection((endpoint.host, endpoint.port), timeout=ANSWER_S) as raw,
        context.wrap_socket(raw, server_hostname=endpoint.host) as secured,
    ):
        return f"valid, {secured.version()}"


def _caller(region: str | None) -> str:
    limits = Config(
        connect_timeout=ANSWER_S, read_timeout=ANSWER_S, retries={"total_max_attempts": 1}
    )
    arn = (
        boto3.Session()
        .client("sts", region_name=region, config=limits)
        .get_caller_identity()["Arn"]
    )
    # The account number is nobody's business in a saved notebook.
    return "signed in as " + str(arn).rsplit(":", 1)[-1]
