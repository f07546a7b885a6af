"""Where the services are and how to reach them: what local engines and AWS both become."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One service as its client library wants it.

    Attributes:
        label: what a learner sees, for example "PostgreSQL, local engine".
        address: host and port, without credentials.
        host, port: for reachability checks.
        arguments: keyword arguments of the client (psycopg2.connect, redis.Redis, boto3.client);
            they may hold secrets, so they are kept out of repr.
        embedded: started by the workshop on this machine.
        emulated: an emulation of the service, to be labelled so wherever a learner sees it.
        aws: the service on AWS itself, so that sign-in, Region, permissions and security groups
            decide who gets an answer.
        tls: the connection is encrypted and the certificate verified.

    """

    label: str
    address: str
    host: str
    port: int
    arguments: Mapping[str, Any] = field(repr=False)
    embedded: bool = False
    emulated: bool = False
    aws: bool = False
    tls: bool = False


@dataclass(frozen=True, slots=True)
class DatabaseEndpoint(Endpoint):
    """A PostgreSQL-compatible database.

    Attributes:
        token: makes a fresh password for each connection; None where there are no tokens.
        signing: arguments of a boto3 client by which tokens are made by hand; empty where the
            server knows none.
        engine: tells the data of this local engine from any other's; empty elsewhere.
        dsql_rules: connections keep Aurora DSQL's rules, on a server that does not by itself.

    """

    engine: str = ""
    dsql_rules: bool = False
    token: Callable[[], str] | None = field(default=None, repr=False)
    signing: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """Which database this is and who asks; part of cache keys.

        A local engine stays the same over restarts and new ports, and is another one after
        `workshop reset`.
        """
        user, name = (self.arguments.get(part, "") for part in ("user", "dbname"))
        return f"{user}@{self.engine or self.address}/{name}"


def engine_name(secret: str) -> str:
    """A name for a local engine, made from a random secret that it has kept since its data began.

    A secret of 160 bits is not given away by it.
    """
    return f"local-{blake2b(secret.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True, slots=True)
class CacheEndpoint(Endpoint):
    """A Valkey (or Redis-compatible) cache."""


@dataclass(frozen=True, slots=True)
class StoreEndpoint(Endpoint):
    """An S3-compatible object store and the bucket in it."""

    bucket: str = ""
    create_bucket: bool = False

    @property
    def identity(self) -> str:
        """Which store and bucket this is; part of cache keys, as a database's is."""
        place = self.address
        if self.embedded:
            place = engine_name(self.arguments["aws_secret_access_key"])
        elif self.host.startswith(("127.", "localhost", "::1")):  # on each machine another one
            place += f"@{platform.node()}"
        return f"{place}/{self.bucket}"


@dataclass(frozen=True, slots=True)
class MessagingEndpoint(Endpoint):
    """Queues and metrics: SQS and CloudWatch, at one address where they are emulated.

    Attributes:
        region: the AWS Region, or the one that the emulation goes by.
        queue_url: the one queue to use; "" where queues are made as needed. It holds an account
            number, so it is kept out of repr.

    """

    region: str = ""
    queue_url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The three services of one workshop.

    Attributes:
        aws_region: the Region, where any of them is on AWS.
        reader: another endpoint of the database's data, for the reads of a load test, if any.
        release: ends this process's use of the local engines; call it once when done.

    """

    database: DatabaseEndpoint
    cache: CacheEndpoint
    store: StoreEndpoint
    aws_region: str | None
    release: Callable[[], None] = field(repr=False)
    reader: DatabaseEndpoint | None = None

    @property
    def all(self) -> tuple[Endpoint, ...]:
        """The three in the order in which a learner meets them."""
        return (self.database, self.cache, self.store)
