"""Where the services are: local engines, servers of your own, or AWS; all become endpoints.

In this order: what an endpoint is; how all of them are found; where the database is, the cache, the
object store, the queues; how to sign in; what of the environment is kept from clients of local
engines; what `workshop env` prints. `cache_client.py` has what is about redis-py alone.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote, urlencode, urlsplit

import certifi
import psycopg2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader
from psycopg2.extensions import parse_dsn

from workshop_lib import services  # its modules, each on first use: a load worker needs few
from workshop_lib.dsql import CLUSTER_NAMES, CLUSTER_REGION
from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.services.error_help import error_help

if TYPE_CHECKING:
    from workshop_lib.services.local import Attachment
    from workshop_lib.settings import Settings

CONNECT_S = 5
TOKEN_LIFE_S = 900
HOST = "127.0.0.1"
ESCAPED = "with special characters of the password as %XX, for example @ as %40"
Release = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One service as its client library wants it.

    Attributes:
        kind: which advice on AWS there is for it.
        label: what a learner sees, for example "PostgreSQL, local engine".
        host, port: where it is.
        arguments: keyword arguments of the client (psycopg2.connect, redis.Redis, boto3.client);
            they may hold secrets, so they are kept out of repr.
        setting: the settings that name it.
        url: its address in one text where there is one, with the password.
        engine: tells the data of this local engine from any other's; empty elsewhere.
        embedded: started by the workshop on this machine.
        sandbox: it is one notebook's own, which may stop it.
        emulated: an emulation of the service, to be labelled so wherever a learner sees it.
        aws: the service on AWS itself, so that sign-in, Region, permissions and security groups
            decide who gets an answer.
        tls: the connection is encrypted and the certificate verified.

    """

    kind: ClassVar[str] = "aws"

    label: str
    host: str
    port: int
    arguments: Mapping[str, Any] = field(repr=False)
    setting: str = "AWS_REGION"
    url: str = field(default="", repr=False)
    engine: str = ""
    embedded: bool = False
    sandbox: bool = False
    emulated: bool = False
    aws: bool = False
    tls: bool = False

    @classmethod
    def at(cls, label: str, arguments: Mapping[str, Any], *more: Any, **named: Any) -> Self:
        """One whose client takes host and port among its arguments."""
        return cls(label, arguments["host"], arguments["port"], arguments, *more, **named)

    @property
    def address(self) -> str:
        """Host and port in one; that of IPv6 stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DatabaseEndpoint(Endpoint):
    """A PostgreSQL-compatible database.

    Attributes:
        dsql_rules: connections keep Aurora DSQL's rules, on a server that does not by itself.
        token: makes a fresh password for each connection; None where there are no tokens.
        signing: arguments of a boto3 client by which tokens are made by hand: for your own
            server, which knows none, of one whose tokens open nothing.

    """

    kind = "database"

    dsql_rules: bool = False
    token: TokenMaker | None = field(default=None, repr=False)
    signing: Mapping[str, Any] = field(default_factory=lambda: _keys({}), repr=False)

    @property
    def identity(self) -> str:
        """Which database this is and who asks; part of cache keys.

        A local engine stays the same over restarts and new ports, and is another one after
        `workshop reset`.
        """
        user, name = (self.arguments.get(part, "") for part in ("user", "dbname"))
        return f"{user}@{self.engine or self.address}/{name}"

    def login(self, user: str = "", life_s: int = TOKEN_LIFE_S) -> dict[str, Any]:
        """Arguments of psycopg2.connect, with a fresh token where there are tokens.

        Args:
            user: as whom, where there are tokens; without it as the user of the settings.
            life_s: how long the token opens connections, at most a week, seconds.

        """
        if not self.token:
            return dict(self.arguments)
        token = self.token(user, life_s)
        return {**self.arguments, "user": user or self.token.user, "password": token}


@dataclass(frozen=True, slots=True)
class CacheEndpoint(Endpoint):
    """A Valkey (or Redis-compatible) cache."""

    kind = "cache"


@dataclass(frozen=True, slots=True)
class StoreEndpoint(Endpoint):
    """An S3-compatible object store and the bucket in it; in a local one it is made."""

    bucket: str = ""

    @property
    def identity(self) -> str:
        """Which store and bucket this is; part of cache keys, as a database's is."""
        place = self.engine or self.address
        if not self.engine and self.host.startswith(("127.", "localhost", "::1")):
            place += f"@{platform.node()}"  # on each machine another one
        return f"{place}/{self.bucket}"


@dataclass(frozen=True, slots=True)
class MessagingEndpoint(Endpoint):
    """Queues and metrics: SQS and CloudWatch, at one address where they are emulated.

    Attributes:
        queue_url: the one queue to use; "" where queues are made as needed. It holds an account
            number, so it is kept out of repr.

    """

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


# --- all of them ---


def resolve(settings: Settings) -> Endpoints:
    """Find the three services, starting the local engines that are needed.

    Args:
        settings: they name the services that are not local.

    Raises:
        EngineError: a local engine could not be started.
        SettingsError: a URL is malformed.

    """
    database, cache = external_database(settings), external_cache(settings)
    store = external_store(settings)
    found = {"postgres": database, "valkey": cache, "s3": store}
    missing = [name for name, endpoint in found.items() if endpoint is None]
    held: Any = _attach(settings, missing) if missing else None
    return Endpoints(
        database=database or embedded_database(held, settings.dsql_rules),
        cache=cache or embedded_cache(held),
        store=store or embedded_store(held),
        aws_region=settings.aws_region,
        release=held.release if held else lambda: None,
        reader=external_reader(settings),
    )


@contextmanager
def session(settings: Settings) -> Iterator[Endpoints]:
    """Hold the services for a command; then the engines end if no other process uses them.

    Raises:
        EngineError, SettingsError: as `resolve`.

    """
    endpoints = resolve(settings.model_copy(update={"workshop_linger_seconds": 0.0}))
    try:
        yield endpoints
    finally:
        endpoints.release()
        services.local.wait_gone(services.state_folder.state_folder(settings.workshop_state_dir))


def _attach(settings: Settings, names: list[str]) -> Attachment:
    """Have local engines running, and nothing of the environment reach their clients."""
    if "postgres" in names:
        _isolate_libpq()
    if not (settings.dsql_endpoint or settings.bucket_name or settings.queue_url):
        _isolate_aws()
    folder = services.state_folder.state_folder(settings.workshop_state_dir)
    return services.local.attach(folder, names, settings)


def is_on_aws(settings: Settings) -> bool:
    """Whether the database is Aurora DSQL, which is paid for."""
    return settings.dsql_endpoint is not None


@contextmanager
def _well_formed(setting: str, example: str) -> Iterator[None]:
    """Refuse a malformed address, without the library's own text: it repeats the password."""
    try:
        yield
    except (psycopg2.ProgrammingError, ValueError):
        raise SettingsError(f"{setting} is not an address such as {example}.") from None


# --- the database ---


def external_database(settings: Settings) -> DatabaseEndpoint | None:
    """The database on AWS, or your own; None if it is the local engine.

    Raises:
        SettingsError: the address is malformed.

    """
    if settings.dsql_endpoint:
        return _cluster_on_aws(settings, settings.dsql_endpoint)
    if not settings.database_url:
        return None
    url = settings.database_url.get_secret_value()
    found: dict[str, Any] = {"host": "localhost", "port": 5432, "connect_timeout": CONNECT_S}
    example = "postgresql://user:password@host:port/database?option=value"
    with _well_formed("DATABASE_URL", f"{example}, {ESCAPED}"):
        found |= parse_dsn(url)
        found["port"] = int(found["port"])
        # @: the end of a password that was not escaped. A service's host would be passed over.
        if "@" in found["host"] or "service" in found or not 0 < found["port"] < 65536:
            raise ValueError("not a host, or not a port")
    tls, rules = found.get("sslmode") in {"verify-full", "verify-ca"}, settings.dsql_rules == "on"
    label = "PostgreSQL of your own (DATABASE_URL)"
    return DatabaseEndpoint.at(label, found, "DATABASE_URL", url, tls=tls, dsql_rules=rules)


def external_reader(settings: Settings) -> DatabaseEndpoint | None:
    """Another endpoint of the same data, for the reads of a load test, if the settings name one."""
    host = settings.dsql_read_endpoint
    return _cluster_on_aws(settings, host) if host else None


def embedded_database(held: Attachment, rules: str = "auto") -> DatabaseEndpoint:
    """The local PostgreSQL that is held; `rules` is the setting DSQL_RULES."""
    place = {"host": HOST, "port": held.engines["postgres"].port, "dbname": "postgres"}
    login = {"user": "admin", "password": held.secrets["admin"], **services.local.LOGIN}
    arguments = {**place, **login, "connect_timeout": CONNECT_S}
    rest = {**_embedded(held), "dsql_rules": rules != "off", "signing": _keys(held.secrets)}
    return DatabaseEndpoint.at("local PostgreSQL 16", arguments, **rest)


def resolve_cluster(settings: Settings) -> tuple[DatabaseEndpoint, Release]:
    """Find the local Aurora DSQL, starting it and the local PostgreSQL if need be.

    Returns:
        Where it is, and what to call when done with it.

    Raises:
        EngineError: it did not start, or cannot run on this machine.

    """
    held = _attach(settings, ["postgres", "dsql"])
    place = {"host": CLUSTER_NAMES[0], "hostaddr": HOST, "port": held.engines["dsql"].port}
    login = {"user": "admin", "dbname": "postgres"}
    # Else a list of revoked certificates in the home folder would have to cover this one, too.
    trust = {"sslrootcert": str(held.folder.certificate), "sslcrl": os.devnull}
    label, signing = "local Aurora DSQL", _keys(held.secrets)
    cluster = _cluster(label, {**place, **login, **trust}, signing, embedded=True, emulated=True)
    return cluster, held.release


def _cluster_on_aws(settings: Settings, host: str) -> DatabaseEndpoint:
    _isolate_libpq()
    # A cluster may be over two Regions, and a token is for one of them.
    region = host.split(".")[2]
    place = {"host": host, "port": settings.aurora_dsql_port, "sslrootcert": ca_bundle()}
    login = {"user": settings.iam_username, "dbname": settings.database_name}
    label, signing = f"Aurora DSQL in {region}", {"region_name": region}
    return _cluster(label, {**place, **login}, signing, setting="DSQL_ENDPOINT", aws=True)


def _cluster(
    label: str, place: dict[str, Any], signing: dict[str, str], **more: Any
) -> DatabaseEndpoint:
    """Aurora DSQL: TLS that verifies, and within it a token, which is sent as it is."""
    tls = {"sslmode": "verify-full", "sslcertmode": "disable", "gssencmode": "disable"}
    arguments = {**place, **tls, "require_auth": "password", "connect_timeout": CONNECT_S}
    token = TokenMaker(place["host"], place["user"], signing)
    return DatabaseEndpoint.at(label, arguments, tls=True, token=token, signing=signing, **more)


# --- the cache ---


def external_cache(settings: Settings) -> CacheEndpoint | None:
    """The cache on AWS, or your own; None if it is the local engine.

    Raises:
        SettingsError: the address is malformed, or has an option that cannot be used.

    """
    if host := settings.valkey_endpoint:
        place = {"host": host, "port": 6379, "ssl": True, "ssl_ca_certs": ca_bundle()}
        arguments, url = services.cache_client.cache_config(**place), f"rediss://{host}:6379/0"
        label, setting = "ElastiCache for Valkey", "VALKEY_ENDPOINT"
        return CacheEndpoint.at(label, arguments, setting, url, aws=True, tls=True)
    if not settings.cache_url:
        return None
    url, setting = settings.cache_url.get_secret_value(), settings.cache_setting
    example = "redis://user:password@host:port/0?option=number (rediss:// for TLS; no Unix socket)"
    with _well_formed(setting, f"{example}, {ESCAPED}"):
        found = services.cache_client.parse_cache_url(url)
    if unknown := found.keys() - services.cache_client.OPTIONS:
        raise SettingsError(
            f"The option {min(unknown)} of {setting} cannot be used here; leave it out. Known "
            f"ones: {', '.join(sorted(services.cache_client.OPTIONS))}."
        )
    arguments, label = (
        services.cache_client.cache_config(**found),
        f"Valkey of your own ({setting})",
    )
    tls = found["ssl"] and found.get("ssl_cert_reqs") != "none"
    return CacheEndpoint.at(label, arguments, setting, url, tls=tls)


def embedded_cache(held: Attachment, name: str = "valkey") -> CacheEndpoint:
    """The local Valkey of this name that is held."""
    port, password = held.engines[name].port, held.secrets["valkey"]
    arguments = services.cache_client.cache_config(host=HOST, port=port, password=password)
    url = f"redis://:{password}@{HOST}:{port}/0"
    return CacheEndpoint.at("local Valkey", arguments, url=url, embedded=True)


# --- the object store ---


def external_store(settings: Settings) -> StoreEndpoint | None:
    """The object store on AWS, or your own; None if it is the local engine.

    Raises:
        SettingsError: the address is malformed.

    """
    bucket, url = settings.bucket_name, settings.aws_endpoint_url_s3
    if not bucket:
        return None
    region = settings.aws_region or CLUSTER_REGION
    if not url:
        place = _on_aws("Amazon S3", "s3", region, _AMAZON_S3)
        return StoreEndpoint(**place, setting="BUCKET_NAME or AWS_REGION", bucket=bucket)
    keys = "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    with _well_formed("AWS_ENDPOINT_URL_S3", f"http://host:port or https://host ({keys})"):
        place = _by_url(url, _PLAIN_S3, region_name=region, endpoint_url=url)
    label = "S3 store of your own (AWS_ENDPOINT_URL_S3)"
    setting = "BUCKET_NAME or AWS_ENDPOINT_URL_S3"
    return StoreEndpoint(label, **place, setting=setting, bucket=bucket)


def embedded_store(held: Attachment) -> StoreEndpoint:
    """The local object store that is held."""
    return StoreEndpoint(**_local(held, "s3", "S3", _PLAIN_S3), bucket="workshop")


# --- queues and metrics ---


def external_messaging(settings: Settings) -> MessagingEndpoint | None:
    """The queue on AWS, and its Region's metrics; None if they are to be emulated."""
    if settings.queue_url is None:
        return None
    place = _on_aws("Amazon SQS and CloudWatch", "sqs", str(settings.aws_region), _QUEUES)
    url = settings.queue_url.get_secret_value()
    return MessagingEndpoint(**place, setting="QUEUE_URL or AWS_REGION", queue_url=url)


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
    held = _attach(settings, ["aws"])
    return MessagingEndpoint(**_local(held, "aws", "SQS and CloudWatch", _QUEUES)), held.release


def messaging_runs(settings: Settings) -> bool:
    """Whether the emulation runs now: only there are queues that the workshop made."""
    folder = services.state_folder.state_folder(settings.workshop_state_dir)
    return settings.queue_url is None and any(
        engine.name == "aws" and engine.pid for engine in services.local.status(folder).engines
    )


# --- the store, queues and metrics alike: what boto3 talks to ---


def _on_aws(name: str, service: str, region: str, config: Config) -> dict[str, Any]:
    """The fields of a service that boto3 finds by its Region."""
    url = f"https://{service}.{region}.amazonaws.com"
    place = _by_url(url, config, region_name=region)
    return {**place, "label": f"{name} in {region}", "aws": True}


def _local(held: Attachment, name: str, service: str, config: Config) -> dict[str, Any]:
    """The fields of a local engine that boto3 talks to."""
    engine, label = held.engines[name], f"local {service} store (rclone, on disk)"
    if engine.emulated:
        label = f"local emulation of {service} (moto, in memory, signatures not checked)"
    url, keys = f"http://{HOST}:{engine.port}", _keys(held.secrets)
    # An empty choice of proxies: none of the environment's is asked for this machine.
    place = _by_url(url, config.merge(Config(proxies={})), endpoint_url=url, **keys)
    return {**place, **_embedded(held), "emulated": engine.emulated, "label": label}


def _by_url(url: str, config: Config, **arguments: Any) -> dict[str, Any]:
    """The fields that follow from an address; the arguments are those of boto3's client.

    Raises:
        ValueError: it is malformed, or has a key in it.

    """
    place = urlsplit(url)
    if not place.hostname or place.username or place.scheme not in {"http", "https"}:
        raise ValueError("not an address of HTTP, or one with a key in it")
    tls = place.scheme == "https"
    port = place.port or (443 if tls else 80)
    arguments["config"] = config
    return {"host": place.hostname, "port": port, "tls": tls, "arguments": arguments}


def _config(attempts: int, **more: Any) -> Config:
    retries: Any = {"total_max_attempts": attempts, "mode": "standard"}
    return Config(connect_timeout=CONNECT_S, retries=retries, **more)


# The Region's own name also in us-east-1: it is the one that the checks ask about.
_AMAZON_S3 = _config(3, read_timeout=20, s3={"us_east_1_regional_endpoint": "regional"})
# Without what only Amazon S3 itself understands. The store is on this machine, or not far from it:
# one that is silent for 8 seconds is stuck.
_PLAIN_S3 = _config(
    attempts=2,
    read_timeout=8,
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
# SQS itself waits up to 20 seconds for messages when asked to. With boto3's own 10 connections the
# threads of a load test would queue here.
_QUEUES = _config(2, read_timeout=30, max_pool_connections=64)


# --- sign-in: keys of local engines, tokens of Aurora DSQL, boto3's clients, authorities ---


def _embedded(held: Attachment) -> dict[str, Any]:
    """The fields of any local engine. All of one state folder have one name, until a reset."""
    return {"embedded": True, "engine": f"local-{held.secrets['identity'][:12]}"}


def _keys(secrets: Mapping[str, str]) -> dict[str, str]:
    """As whom a boto3 client of a local engine signs; without secrets, as nobody."""
    return {
        "region_name": CLUSTER_REGION,
        "aws_access_key_id": secrets.get("s3_key", "stand-in"),
        "aws_secret_access_key": secrets.get("s3_secret", "stand-in"),
    }


@dataclass(frozen=True)
class TokenMaker:
    """Signs new passwords of Aurora DSQL, without asking AWS.

    It can travel to another process, as a client cannot.

    Attributes:
        host: of the cluster.
        user: as whom to sign in: `admin`, or a role that may log in.
        signing: arguments of the boto3 client that signs.

    """

    host: str
    user: str
    signing: Mapping[str, Any] = field(repr=False)

    def __call__(self, user: str = "", life_s: int = TOKEN_LIFE_S) -> str:
        """A password for this user, or another one, that opens connections for so long."""
        kind = "connect_admin" if (user or self.user) == "admin" else "connect"
        try:
            make = getattr(self._client, f"generate_db_{kind}_auth_token")
            return str(make(self.host, self.signing["region_name"], ExpiresIn=life_s))
        except (BotoCoreError, ClientError) as error:  # the latter where a role is to be assumed
            raise ServiceUnreachableError(
                f"No sign-in token for Aurora DSQL could be made: {error_help(error)}"
            ) from None

    @cached_property
    def _client(self) -> Any:
        """Kept: building one takes 40 ms."""
        return aws_client("dsql", self.signing)

    def __reduce__(self) -> tuple[type[TokenMaker], tuple[str, str, Mapping[str, Any]]]:
        return TokenMaker, (self.host, self.user, self.signing)


def aws_client(service: str, arguments: Mapping[str, Any]) -> Any:
    """A boto3 client of this service of AWS, or of an engine that speaks like it."""
    import boto3  # noqa: PLC0415 -- a fifth of a second that local engines need not spend

    # A session of its own each time: the shared one remembers the first credentials that it met.
    make: Any = boto3.Session().client  # typed for names that are written out only
    return make(service, **arguments)


def ca_bundle() -> str:
    """The file with the authorities by which the certificates of database and cache are verified.

    The public ones that certifi keeps, Amazon's among them; or the file that AWS_CA_BUNDLE names,
    which boto3 uses as well: for a network whose proxy shows certificates of its own.
    """
    return os.environ.get("AWS_CA_BUNDLE") or certifi.where()


# --- what of the environment is kept from clients of local engines ---


def _isolate_libpq() -> None:
    """Keep what PG* variables say from this process's clients of PostgreSQL.

    Each option of libpq has one, some override what a client asks for, and some make the sign-in
    fail. Nothing of this process is for another server that they could be meant for.
    """
    _unset("PG")


def _isolate_aws() -> None:
    """Keep the caller's profile and files from this process's clients of local engines.

    What stays is overridden by a client's arguments, or is a setting. Of a profile that does not
    exist, or a setting such as AWS_USE_FIPS_ENDPOINT, boto3 complains whatever its arguments are.
    """
    _unset("AWS_", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION",
           "DEFAULT_REGION", "ENDPOINT_URL_S3", "CA_BUNDLE")  # fmt: skip
    os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    os.environ["AWS_DATA_PATH"] = Loader.BUILTIN_DATA_PATH  # before ~/.aws/models


def _unset(prefix: str, *kept: str) -> None:
    for name in [name for name in os.environ if name.startswith(prefix)]:
        if name.removeprefix(prefix) not in kept:
            del os.environ[name]


# --- for other programs ---


def exports(settings: Settings, endpoints: Endpoints) -> dict[str, str]:
    """Environment variables by which other programs (psql, valkey-cli, aws) reach the services.

    An address that was given is printed as it was given. They hold passwords: for `workshop env`,
    and for nothing that is kept.
    """
    store = endpoints.store.arguments
    found = {
        "DATABASE_URL": database_url(endpoints.database, settings),
        "VALKEY_URL": endpoints.cache.url,
        "AWS_ENDPOINT_URL_S3": store.get("endpoint_url"),
        "BUCKET_NAME": endpoints.store.bucket,
        "AWS_ACCESS_KEY_ID": store.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": store.get("aws_secret_access_key"),
        # The shell's own would be sent along with the local key.
        "AWS_SESSION_TOKEN": "" if endpoints.store.embedded else None,
        "AWS_DEFAULT_REGION": store.get("region_name"),
    }
    return {name: value for name, value in found.items() if value is not None}


def database_url(endpoint: DatabaseEndpoint, settings: Settings, life_s: int = TOKEN_LIFE_S) -> str:
    """The address that was given, or one with the workshop's schema first.

    Args:
        endpoint: of the database.
        settings: they name the schema.
        life_s: how long a token in it opens connections, seconds.

    """
    if endpoint.url:
        return endpoint.url
    given = endpoint.login(life_s=life_s)
    login = f"{quote(given['user'], safe='')}:{quote(given['password'], safe='')}"
    options = {"options": f"-csearch_path={settings.workshop_namespace}"}
    options |= {n: given[n] for n in ("sslmode", "sslrootcert", "hostaddr") if n in given}
    place = f"{endpoint.address}/{quote(given['dbname'], safe='')}"
    return f"postgresql://{login}@{place}?{urlencode(options, quote_via=quote)}"
