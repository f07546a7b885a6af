"""Questions to ask a service one layer at a time: Region, name, port, certificate, sign-in."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from workshop_lib.services.client_config import ca_bundle
from workshop_lib.services.endpoints import Endpoint, Endpoints, MessagingEndpoint
from workshop_lib.services.explain import explain

ANSWER_S = 5.0
BRIEF = Config(
    connect_timeout=ANSWER_S / 2, read_timeout=ANSWER_S, retries={"total_max_attempts": 1}
)
"""Of an AWS client whose answer, or silence, is itself what is asked for."""

COMPASS = {"n": "north", "s": "south", "e": "east", "w": "west", "c": "central"}

E = TypeVar("E", bound=Endpoint)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        name: what is asked.
        ask: answers with a detail to show, or raises.
        advise: what to do about what it raised.
        place: of the questions about one place, those after the first ✗ are pointless.

    """

    name: str
    ask: Callable[[], str]
    advise: Callable[[Exception], str]
    place: str = ""


def probes(endpoints: Endpoints, queues: MessagingEndpoint | None = None) -> list[Probe]:
    """The questions that make sense for these endpoints, in the order in which faults show.

    Args:
        endpoints: the three services.
        queues: those on AWS, if they are used.

    """
    asked = [*endpoints.all, *filter(None, (endpoints.reader, queues))]
    found = list(_regions(endpoints))
    if any(endpoint.aws for endpoint in asked):
        found.append(_identity(endpoints.aws_region))
    for endpoint in asked:
        found.extend(_network(endpoint))
    token = endpoints.database.token
    if token is not None:
        make = token
        found.append(
            Probe(
                "Sign-in token for the database",
                lambda: f"made locally, {len(make())} characters (not shown)",
                explain,
            )
        )
    return found


def briefly(endpoint: E) -> E:
    """The same place on AWS, for clients that wait for an answer once and not for long."""
    given: Config = endpoint.arguments["config"]
    return replace(endpoint, arguments={**endpoint.arguments, "config": given.merge(BRIEF)})


def _regions(endpoints: Endpoints) -> Iterator[Probe]:
    """The other names that hold a Region are compared where the settings are read."""
    region = endpoints.aws_region
    if region is None or not endpoints.cache.aws:
        return
    found = cache_region(endpoints.cache.host)
    if found is None:
        return

    def compare() -> str:
        if found != region:
            raise ValueError(f"VALKEY_ENDPOINT is in {found}, AWS_REGION is {region}")
        return region

    yield Probe(
        "Region of the cache",
        compare,
        lambda _: (
            "Correct one of the two: from another Region the way to the cache takes longer "
            "than a query."
        ),
    )


def cache_region(host: str) -> str | None:
    """The Region in the name of an ElastiCache endpoint; None where that is not certain.

    >>> cache_region("mine-abc123.serverless.euw1.cache.amazonaws.com")
    'eu-west-1'
    """
    code = host.removesuffix(".cache.amazonaws.com").rpartition(".")[2]
    if re.fullmatch(r"[a-z]{2}-[a-z]+-\d", code):
        return code
    found = re.fullmatch(r"([a-z]{2})(n|ne|nw|s|se|sw|e|w|c)(\d)", code)
    # "aps1" is Mumbai in names of zones, and Singapore on bills.
    if found is None or found[1] + found[2] == "aps":
        return None
    return f"{found[1]}-{''.join(COMPASS[letter] for letter in found[2])}-{found[3]}"


def _identity(region: str | None) -> Probe:
    place = Endpoint(
        label=f"the sign-in service of AWS (STS) in {region or 'us-east-1'}",
        address="",
        host="",
        port=443,
        arguments={"region_name": region},
        aws=True,
    )
    return Probe("AWS identity", lambda: _caller(region), partial(explain, endpoint=place))


def _network(endpoint: Endpoint) -> Iterator[Probe]:
    place = f"{endpoint.label} at {endpoint.address}"
    advise = partial(explain, endpoint=endpoint)
    if not endpoint.embedded:
        yield Probe(f"Name of {place}", lambda: _look_up(endpoint), _of_name(advise), place)
    yield Probe(f"Port of {place}", lambda: _knock(endpoint), advise, place)
    if endpoint.tls:
        yield Probe(f"Certificate of {place}", lambda: _shake_hands(endpoint), advise, place)


def _of_name(advise: Callable[[Exception], str]) -> Callable[[Exception], str]:
    """Silence there is that of the name server, which is not the place that was asked for."""
    silent = "The name server of this machine does not answer. Does it have a network?"
    return lambda error: silent if isinstance(error, TimeoutError) else advise(error)


def _look_up(endpoint: Endpoint) -> str:
    return f"{len(_addresses(endpoint))} address(es)"


def _addresses(endpoint: Endpoint) -> set[Any]:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return {address[4][0] for address in found}


def _knock(endpoint: Endpoint) -> str:
    _connect(endpoint).close()
    return "open"


def _connect(endpoint: Endpoint) -> socket.socket:
    patience = min(ANSWER_S, float(endpoint.arguments.get("connect_timeout", ANSWER_S)))
    # Each address of a name is waited for in turn, so the wait is shared out.
    share = max(0.5, patience / len(_addresses(endpoint)))
    return socket.create_connection((endpoint.host, endpoint.port), timeout=share)


def _shake_hands(endpoint: Endpoint) -> str:
    if endpoint.port == 5432:
        return "verified by the database client when it connects"
    how = endpoint.arguments
    context = ssl.create_default_context(cafile=how.get("ssl_ca_certs") or ca_bundle())
    context.check_hostname = how.get("ssl_check_hostname", True)
    with _connect(endpoint) as raw:
        raw.settimeout(ANSWER_S)
        with context.wrap_socket(raw, server_hostname=endpoint.host) as secured:
            return f"valid, {secured.version()}"


def _caller(region: str | None) -> str:
    arn = (
        boto3.Session().client("sts", region_name=region, config=BRIEF).get_caller_identity()["Arn"]
    )
    # The account number is nobody's business in a saved notebook.
    return "signed in as " + str(arn).rsplit(":", 1)[-1]
