"""Where the services are: local engines, servers of one's own, or AWS; all become endpoints."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import psycopg2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2.extensions import parse_dsn

from workshop_lib import services  # its modules, each on first use: to read an error takes few
from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.services.client_config import ca_bundle, isolate_libpq

if TYPE_CHECKING:
    from pydantic import SecretStr

    from workshop_lib.services.local import Attachment
    from workshop_lib.settings import Settings

CONNECT_S = 5
CACHE_TIMEOUT_S = 1.0
"""A cache that takes longer than this to answer is worse than none."""
TOKEN_LIFE_S = 900
HOST = "127.0.0.1"
LOCAL_REGION = "us-east-1"
LOCAL_BUCKET = "workshop"
MESSAGING_ENGINE = "aws"
_IN_URL = frozenset({"user", "password", "dbname", "host", "port"})

Release = Callable[[], None]
E = TypeVar("E", bound="Endpoint")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One service as its client library wants it.

    Attributes:
        label: what a learner sees, for example "PostgreSQL, local engine".
        host, port: where it is.
        arguments: keyword arguments of the client (psycopg2.connect, redis.Redis, boto3.client);
            they may hold secrets, so they are kept out of repr.
        embedded: started by the workshop on this machine.
        sandbox: it is one notebook's own, which may stop it.
        emulated: an emulation of the service, to be labelled so wherever a learner sees it.
        aws: the service on AWS itself, so that sign-in, Region, permissions and security groups
            decide who gets an answer.
        tls: the connection is encrypted and the certificate verified.

    """

    label: str
    host: str
    port: int
    arguments: Mapping[str, Any] = field(repr=False)
    embedded: bool = False
    sandbox: bool = False
    emulated: bool = False
    aws: bool = False
    tls: bool = False

    @property
    def address(self) -> str:
        """Host and port in one; that of IPv6 stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DatabaseEndpoint(Endpoint):
    """A PostgreSQL-compatible database.

    Attributes:
        engine: tells the data of this local engine from any other's; empty elsewhere.
        dsql_rules: connections keep Aurora DSQL's rules, on a server that does not by itself.
        token: makes a fresh password for each connection; None where there are no tokens.
        signing: arguments of a boto3 client by which tokens are made by hand; empty where the
            server knows none.

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
    release: Release = field(repr=False)
    reader: DatabaseEndpoint | None = None

    @property
    def all(self) -> tuple[Endpoint, ...]:
        """The three in the order in which a learner meets them."""
        return (self.database, self.cache, self.store)


def resolve(settings: Settings, idle_s: float | None = None) -> Endpoints:
    """Find the three services, starting the local engines that are needed.

    Args:
        settings: they name the services that are not local.
        idle_s: how long the engines outlive this use, seconds; None for what the settings say.

    Raises:
        EngineError: a local engine could not be started.
        SettingsError: a URL is malformed.

    """
    ours = _own_secrets(settings)
    database = external_database(settings, ours)
    cache, store = external_cache(settings, ours), external_store(settings, ours)
    found = {"postgres": database, "valkey": cache, "s3": store}
    missing = [name for name, endpoint in found.items() if endpoint is None]
    held: Any = _attach(settings, missing, idle_s) if missing else None
    return Endpoints(
        database=database or embedded_database(held, settings.dsql_rules),
        cache=cache or embedded_cache(held),
        store=store or _embedded_store(held),
        aws_region=settings.aws_region,
        release=held.release if held else lambda: None,
        reader=external_reader(settings),
    )


@contextmanager
def session(settings: Settings) -> Iterator[Endpoints]:
    """Hold the services for the length of a command; afterwards the engines end if nobody is left.

    Raises:
        EngineError, SettingsError: as `resolve`.

    """
    endpoints = resolve(settings, idle_s=0.0)
    try:
        yield endpoints
    finally:
        endpoints.release()
        services.local.wait_gone(services.state_folder.state_folder(settings.workshop_state_dir))


def resolve_messaging(settings: Settings) -> tuple[MessagingEndpoint, Release]:
    """Find the queues and metrics, starting the emulation if it is needed.

    The emulation keeps all in memory: if it is killed, it is started again at the same address, but
    queues, messages and metrics are gone.

    Returns:
        Where they are, and what to call when done with them.

    Raises:
        EngineError: the emulation could not be started.

    """
    if found := external_messaging(settings):
        return found, lambda: None
    held = _attach(settings, [MESSAGING_ENGINE])
    return _embedded_messaging(held), held.release


def running_messaging(settings: Settings) -> tuple[MessagingEndpoint, Release] | None:
    """As `resolve_messaging` if the emulation is in use and runs already; starts nothing."""
    if settings.queue_url is not None:
        return None
    folder = services.state_folder.state_folder(settings.workshop_state_dir)
    up = {engine.name for engine in services.local.status(folder).engines if engine.status == "up"}
    return resolve_messaging(settings) if MESSAGING_ENGINE in up else None


def exports(settings: Settings, endpoints: Endpoints) -> dict[str, str]:
    """Environment variables by which other programs (psql, valkey-cli, aws) reach the services.

    They hold passwords: for `workshop env`, and for nothing that is kept.
    """
    store = endpoints.store.arguments
    found = {
        "DATABASE_URL": _database_url(endpoints.database, settings.workshop_namespace),
        "VALKEY_URL": _valkey_url(endpoints.cache, settings),
        "AWS_ENDPOINT_URL_S3": store.get("endpoint_url"),
        "BUCKET_NAME": endpoints.store.bucket,
        "AWS_ACCESS_KEY_ID": store.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": store.get("aws_secret_access_key"),
        # Somebody's own would be sent along with the local key.
        "AWS_SESSION_TOKEN": "" if endpoints.store.embedded else None,
        "AWS_DEFAULT_REGION": store.get("region_name"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _database_url(endpoint: DatabaseEndpoint, schema: str) -> str:
    """An address by which psql connects as we do, and has the workshop's schema first."""
    given = {name: str(value) for name, value in endpoint.arguments.items() if value != ""}
    if endpoint.token:
        given["password"] = endpoint.token()
    login = quote(given.get("user", ""), safe="")
    if "password" in given:
        login += ":" + quote(given["password"], safe="")
    options = {name: value for name, value in given.items() if name not in _IN_URL}
    if endpoint.embedded or endpoint.aws:  # an older psql does not know all of libpq's options
        options = {name: options[name] for name in ("sslmode", "sslrootcert") if name in options}
    options["options"] = f"{options.get('options', '')} -csearch_path={schema}".strip()
    place = replace(endpoint, host=quote(endpoint.host, safe=":")).address
    path = f"/{quote(given['dbname'], safe='')}" if "dbname" in given else ""
    query = urlencode(options, quote_via=quote)
    return f"postgresql://{login}{'@' if login else ''}{place}{path}?{query}"


def _valkey_url(endpoint: CacheEndpoint, settings: Settings) -> str:
    """An address by which valkey-cli connects as we do: where one is given, that one."""
    if endpoint.embedded:
        return f"redis://:{endpoint.arguments['password']}@{endpoint.address}/0"
    if settings.cache_url is None:
        return f"rediss://{endpoint.address}/0"
    return settings.cache_url.get_secret_value()


# --- local engines ---


def _attach(settings: Settings, names: list[str], idle_s: float | None = None) -> Attachment:
    folder = services.state_folder.state_folder(settings.workshop_state_dir)
    return services.local.attach(folder, names, settings, idle_s)


def _own_secrets(settings: Settings) -> frozenset[str]:
    """The local engines' passwords, if there are any.

    By them an address that `workshop env` printed is known: it leads to the local engines, and
    would fail as somebody's own server as soon as they end or change ports.
    """
    folder = services.state_folder.state_folder(settings.workshop_state_dir)
    known = folder.read(folder.path / "secrets.json") if folder.ours else {}
    return frozenset(value for value in known.values() if isinstance(value, str) and value)


def engine_name(secret: str) -> str:
    """A name for a local engine, made from a random secret that it has kept since its data began.

    A secret of 160 bits is not given away by it.
    """
    return f"local-{blake2b(secret.encode(), digest_size=6).hexdigest()}"


def embedded_database(held: Attachment, rules: str = "auto") -> DatabaseEndpoint:
    """How to reach the local PostgreSQL that is held; `rules` is the setting DSQL_RULES."""
    secret = held.secrets["admin"]
    login = {"user": "admin", "password": secret, "dbname": "postgres"}
    # If a program of somebody else's took its port, the password is not sent to it as text.
    limits = {"connect_timeout": CONNECT_S, "require_auth": "scram-sha-256"}
    return _sql_or_cache(
        DatabaseEndpoint,
        "local PostgreSQL 16",
        HOST,
        held.engines["postgres"].port,
        {**isolate_libpq(), **login, **limits},
        embedded=True,
        engine=engine_name(secret),
        dsql_rules=rules != "off",
    )


def embedded_cache(held: Attachment, name: str = "valkey") -> CacheEndpoint:
    """How to reach the local Valkey of this name that is held."""
    arguments = {"password": held.secrets["valkey"], **_cache_config()}
    port = held.engines[name].port
    return _sql_or_cache(CacheEndpoint, "local Valkey", HOST, port, arguments, embedded=True)


def _embedded_store(held: Attachment) -> StoreEndpoint:
    label = "local S3 store (rclone, on disk)"
    if held.engines["s3"].emulated:
        label = "local S3 emulation (moto, in memory, signatures not checked)"
    ours = {"bucket": LOCAL_BUCKET, "create_bucket": True}
    return _local_aws(StoreEndpoint, label, held, "s3", _PLAIN_S3, **ours)


def _embedded_messaging(held: Attachment) -> MessagingEndpoint:
    label = "local emulation of SQS and CloudWatch (moto, in memory, signatures not checked)"
    return _local_aws(
        MessagingEndpoint, label, held, MESSAGING_ENGINE, _QUEUES, region=LOCAL_REGION
    )


def _local_aws(
    kind: type[E], label: str, held: Attachment, name: str, config: dict[str, Any], **more: Any
) -> E:
    """A local engine that clients of AWS talk to."""
    engine = held.engines[name]
    arguments = {
        "endpoint_url": f"http://{HOST}:{engine.port}",
        "aws_access_key_id": held.secrets["s3_key"],
        "aws_secret_access_key": held.secrets["s3_secret"],
        "region_name": LOCAL_REGION,
        # An empty choice of proxies: none of the environment's is asked for this machine.
        "config": _config(**config, proxies={}),
    }
    more |= {"embedded": True, "emulated": engine.emulated}
    return kind(label, HOST, engine.port, arguments, **more)


# --- one's own, and AWS: found without ever starting a local engine ---


def external_database(settings: Settings, ours: Set[str] = frozenset()) -> DatabaseEndpoint | None:
    """Where the settings say that the database is; None if it is the local engine.

    Args:
        settings: they name Aurora DSQL, or a server of one's own.
        ours: passwords by which an address is known to be the local engine's.

    Raises:
        SettingsError: the address is malformed.

    """
    if settings.dsql_endpoint:
        return _dsql(settings, settings.dsql_endpoint, str(settings.aws_region))
    url = _text(settings.database_url, ours)
    if not url:
        return None
    try:
        found: dict[str, Any] = parse_dsn(url)
        host, port = str(found.get("host", "localhost")), int(found.get("port", 5432))
        found["connect_timeout"] = int(found.get("connect_timeout", CONNECT_S))
        if "@" in host or not 0 < port < 65536:  # @: the end of a password that was not escaped
            raise ValueError("not a host, or not a port")
    except (psycopg2.ProgrammingError, ValueError):
        # The library's own message repeats the text, and with it the password.
        raise SettingsError(
            "DATABASE_URL is not a PostgreSQL address. Its form is postgresql://user:password@"
            "host:port/database, perhaps with ?option=value of PostgreSQL's client library; "
            f"{services.cache_url.ESCAPES}"
        ) from None
    if service := os.environ.get("PGSERVICE"):
        found.setdefault("service", service)  # a local engine's clients remove the variable
    label = "PostgreSQL of your own (DATABASE_URL)"
    tls, rules = found.get("sslmode") in {"verify-full", "verify-ca"}, settings.dsql_rules == "on"
    return _sql_or_cache(DatabaseEndpoint, label, host, port, found, tls=tls, dsql_rules=rules)


def external_reader(settings: Settings) -> DatabaseEndpoint | None:
    """Another endpoint of the same data, for the reads of a load test, if the settings name one."""
    if not settings.dsql_read_endpoint:
        return None
    # Perhaps the other end of a cluster over two Regions: a token is for one of them.
    return _dsql(settings, settings.dsql_read_endpoint, settings.dsql_read_endpoint.split(".")[2])


def external_cache(settings: Settings, ours: Set[str] = frozenset()) -> CacheEndpoint | None:
    """Where the settings say that the cache is; None if it is the local engine.

    Raises:
        SettingsError: the address is malformed.

    """
    if host := settings.valkey_endpoint:
        label, tls = "ElastiCache for Valkey", {"ssl": True, "ssl_ca_certs": ca_bundle()}
        arguments = {**tls, **_cache_config()}
        return _sql_or_cache(CacheEndpoint, label, host, 6379, arguments, aws=True, tls=True)
    url = _text(settings.cache_url, ours)
    if not url:
        return None
    found = services.cache_url.parse_cache_url(url)
    return _sql_or_cache(
        CacheEndpoint,
        "Valkey of your own (VALKEY_URL)",
        found["host"],
        found["port"],
        {**_cache_config(), **found},
        tls=found["ssl"] and found.get("ssl_cert_reqs") != "none",
    )


def external_store(settings: Settings, ours: Set[str] = frozenset()) -> StoreEndpoint | None:
    """Where the settings say that objects are; None if it is the local engine.

    Raises:
        SettingsError: the address is malformed.

    """
    if not settings.bucket_name or os.environ.get("AWS_SECRET_ACCESS_KEY") in ours:
        return None
    url, region = settings.aws_endpoint_url_s3, settings.aws_region or LOCAL_REGION
    try:
        place = urlsplit(url or f"https://s3.{region}.amazonaws.com")
        port = place.port or (443 if place.scheme == "https" else 80)
    except ValueError:
        place, port = urlsplit(""), 0
    if not place.hostname or place.username or place.scheme not in {"http", "https"}:
        raise SettingsError(
            "AWS_ENDPOINT_URL_S3 is not an address; its form is http://host:port or https://host "
            "(keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    arguments = {"region_name": region, "config": _config(**(_PLAIN_S3 if url else _AMAZON_S3))}
    return StoreEndpoint(
        "S3 store of your own (AWS_ENDPOINT_URL_S3)" if url else f"Amazon S3 in {region}",
        place.hostname,
        port,
        arguments | ({"endpoint_url": url} if url else {}),
        aws=not url,
        tls=place.scheme == "https",
        bucket=settings.bucket_name,
    )


def external_messaging(settings: Settings) -> MessagingEndpoint | None:
    """Where the settings say that the queue is; None if it is the emulation's."""
    if settings.queue_url is None:
        return None
    region = str(settings.aws_region)
    return MessagingEndpoint(
        f"Amazon SQS and CloudWatch in {region}",
        f"sqs.{region}.amazonaws.com",
        443,
        {"region_name": region, "config": _config(**_QUEUES)},
        aws=True,
        tls=True,
        region=region,
        queue_url=settings.queue_url.get_secret_value(),
    )


def external_region(settings: Settings) -> str | None:
    """The Region of the services on AWS, where the settings name one."""
    return settings.aws_region


def is_on_aws(settings: Settings) -> bool:
    """Whether the database is Aurora DSQL, which is paid for."""
    return settings.dsql_endpoint is not None


def _text(url: SecretStr | None, ours: Set[str]) -> str:
    """An address as text; empty if there is none, or it is the local engine's."""
    text = url.get_secret_value() if url else ""
    return "" if any(secret in text for secret in ours) else text


def _dsql(settings: Settings, host: str, region: str) -> DatabaseEndpoint:
    user, database = settings.iam_username, settings.database_name
    login = {"user": user, "dbname": database, "connect_timeout": CONNECT_S}
    tls = {"sslmode": "verify-full", "sslrootcert": ca_bundle()}
    return _sql_or_cache(
        DatabaseEndpoint,
        f"Aurora DSQL in {region}",
        host,
        settings.aurora_dsql_port,
        # A token is sent as it is, within TLS.
        {**isolate_libpq(), **login, **tls, "require_auth": "password"},
        aws=True,
        tls=True,
        token=TokenMaker(host, region, user),
        signing={"region_name": region},
    )


@dataclass(frozen=True)
class TokenMaker:
    """Signs a new password when called. It can travel to another process, as a client cannot."""

    host: str
    region: str
    user: str = "admin"

    def __call__(self) -> str:
        """The password, good for `TOKEN_LIFE_S` seconds."""
        try:
            make = (
                self._client.generate_db_connect_admin_auth_token
                if self.user == "admin"
                else self._client.generate_db_connect_auth_token
            )
            return str(make(Hostname=self.host, Region=self.region, ExpiresIn=TOKEN_LIFE_S))
        except (BotoCoreError, ClientError) as error:  # the latter where a role is to be assumed
            raise ServiceUnreachableError(
                "No sign-in token for Aurora DSQL could be made: "
                f"{services.error_help.error_help(error)}"
            ) from None

    @cached_property
    def _client(self) -> Any:
        """Kept: building one takes 40 ms."""
        import boto3  # noqa: PLC0415 -- a fifth of a second that local engines need not spend

        return boto3.Session().client("dsql", region_name=self.region)

    def __reduce__(self) -> tuple[type[TokenMaker], tuple[str, str, str]]:
        return TokenMaker, (self.host, self.region, self.user)


# --- what both have ---


def _sql_or_cache(
    kind: type[E], label: str, host: str, port: int, arguments: Mapping[str, Any], **more: Any
) -> E:
    """An endpoint whose client is told host and port apart."""
    return kind(label, host, port, {**arguments, "host": host, "port": port}, **more)


def _cache_config() -> dict[str, Any]:
    """Bounded waits; one more try, for a connection that the server closed while it was idle.

    Not after silence: the second try would double the wait. A connection begins with one command,
    HELLO, and not with the three more of the client's defaults, as each is a round trip. With none
    (RESP2, no password) the session ticket of TLS 1.3 would stay unread, and redis-py takes it for
    the rest of an earlier answer: "Connection not ready".
    """
    import redis  # noqa: PLC0415 -- a third of a second; to read an error takes only the classes

    once_more = redis.retry.Retry(
        redis.backoff.NoBackoff(), 1, supported_errors=(redis.ConnectionError,)
    )
    waits = dict.fromkeys(("socket_connect_timeout", "socket_timeout"), CACHE_TIMEOUT_S)
    quiet = redis.maint_notifications.MaintNotificationsConfig(enabled=False)
    greeting = {"protocol": 3, "driver_info": None, "maint_notifications_config": quiet}
    return {**waits, **greeting, "retry": once_more}


def _config(*, total_max_attempts: int = 2, **more: Any) -> Config:
    retries: Any = {"total_max_attempts": total_max_attempts, "mode": "standard"}
    return Config(connect_timeout=CONNECT_S, retries=retries, **more)


_AMAZON_S3: dict[str, Any] = {
    "read_timeout": 20,
    "total_max_attempts": 3,
    # The Region's own name also in us-east-1: it is the one that the checks ask about.
    "s3": {"us_east_1_regional_endpoint": "regional"},
}
_PLAIN_S3: dict[str, Any] = {
    "read_timeout": 8,  # on this machine, or not far from it: who is silent for so long is stuck
    "signature_version": "s3v4",
    "s3": {"addressing_style": "path"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
"""Without what only Amazon S3 itself understands."""
_QUEUES: dict[str, Any] = {
    "read_timeout": 30,  # SQS itself waits up to 20 s for messages when asked to
    "max_pool_connections": 64,  # with boto3's own 10 the threads of a load test would queue here
}
