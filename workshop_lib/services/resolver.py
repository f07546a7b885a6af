"""Turn settings into endpoints: for each service AWS, a server of one's own, or a local engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import boto3
import psycopg2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2.extensions import parse_dsn
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.retry import Retry

from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.services import embedded
from workshop_lib.services.cache_url import ESCAPES, parse_cache_url
from workshop_lib.services.embedded import Attachment
from workshop_lib.services.endpoints import (
    CacheEndpoint,
    DatabaseEndpoint,
    Endpoints,
    StoreEndpoint,
    engine_name,
)
from workshop_lib.services.engines import HOST, NEVER_IN_CLEAR
from workshop_lib.services.error_help import error_help
from workshop_lib.services.state import state_folder
from workshop_lib.services.surroundings import isolate_libpq
from workshop_lib.services.trust import trusted_certificates
from workshop_lib.settings import Settings, dsql_region

CONNECT_S = 5
CACHE_TIMEOUT_S = 1.0
"""A cache that takes longer than this to answer is worse than none."""
TOKEN_LIFE_S = 900
EMBEDDED_BUCKET = "workshop"
_UNKNOWN_OPTION = re.compile(r'invalid (?:URI query parameter:|connection option) "([a-z_]+)"')


def resolve(settings: Settings) -> Endpoints:
    """Find the three services, starting the local engines that are needed.

    Raises:
        EngineError: a local engine could not be started.
        SettingsError: a URL is malformed.

    """
    settings = _without_our_own(settings)
    database = external_database(settings)
    cache = external_cache(settings)
    store = external_store(settings)
    wanted = {"postgres": database, "valkey": cache, "s3": store}
    missing = [name for name, endpoint in wanted.items() if endpoint is None]
    attachment = None
    if missing:
        attachment = embedded.attach(state_folder(settings.workshop_state_dir), missing, settings)
    return Endpoints(
        database=database or embedded_database(_held(attachment), settings.dsql_rules),
        cache=cache or embedded_cache(_held(attachment)),
        store=store or _embedded_store(_held(attachment)),
        aws_region=settings.aws_region,
        release=attachment.release if attachment else lambda: None,
        reader=external_reader(settings),
    )


@contextmanager
def session(settings: Settings) -> Iterator[Endpoints]:
    """Hold the services for the length of a command; afterwards the engines end if nobody is left.

    Raises:
        EngineError, SettingsError: as `resolve`.

    """
    brief = settings.model_copy(update={"workshop_linger_seconds": 0.0})
    endpoints = resolve(brief)
    try:
        yield endpoints
    finally:
        endpoints.release()
        embedded.wait_gone(state_folder(settings.workshop_state_dir))


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
    options = {name: str(value) for name, value in endpoint.arguments.items() if value != ""}
    if endpoint.token:
        options["password"] = endpoint.token()
    if endpoint.embedded or endpoint.aws:
        # An older psql does not know all options; these are the ones that matter.
        names = ("user", "password", "dbname", "sslmode", "sslrootcert")
        options = {name: options[name] for name in names if name in options}
    user, password, database = (
        quote(options.pop(name, ""), safe="") for name in ("user", "password", "dbname")
    )
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    options["options"] = f"{options.get('options', '')} -csearch_path={schema}".strip()
    for name in ("host", "port"):
        options.pop(name, None)
    place = _address(quote(endpoint.host, safe=":"), endpoint.port)
    path = f"/{database}" if database else ""
    return f"postgresql://{login}{place}{path}?{urlencode(options, quote_via=quote)}"


def _valkey_url(endpoint: CacheEndpoint, settings: Settings) -> str:
    """An address by which valkey-cli connects as we do: where one is given, that one."""
    if endpoint.embedded:
        return f"redis://:{endpoint.arguments['password']}@{endpoint.address}/0"
    if settings.cache_url is None:
        return f"rediss://{endpoint.address}/0"
    return settings.cache_url.get_secret_value()


def embedded_database(held: Attachment, rules: str = "auto") -> DatabaseEndpoint:
    """How to reach the local PostgreSQL that is held; `rules` is the setting DSQL_RULES."""
    port = held.engines["postgres"].port
    return DatabaseEndpoint(
        label="local PostgreSQL 16",
        address=f"{HOST}:{port}",
        host=HOST,
        port=port,
        arguments={
            **isolate_libpq(),
            "host": HOST,
            "port": port,
            "user": "admin",
            "password": held.secrets["admin"],
            "dbname": "postgres",
            "connect_timeout": CONNECT_S,
            "require_auth": NEVER_IN_CLEAR,
        },
        embedded=True,
        engine=engine_name(held.secrets["admin"]),
        dsql_rules=rules != "off",
    )


def embedded_cache(held: Attachment, name: str = "valkey") -> CacheEndpoint:
    """How to reach the local Valkey of this name that is held."""
    port = held.engines[name].port
    return CacheEndpoint(
        label="local Valkey",
        address=f"{HOST}:{port}",
        host=HOST,
        port=port,
        arguments={
            "host": HOST,
            "port": port,
            "password": held.secrets["valkey"],
            **_cache_manners(),
        },
        embedded=True,
    )


def _without_our_own(settings: Settings) -> Settings:
    """Leave out addresses that `workshop env` printed: they are the local engines themselves.

    Taken for somebody's own servers, they would fail as soon as the engines end or change ports.
    The random passwords tell.
    """
    folder = state_folder(settings.workshop_state_dir)
    known = folder.read(folder.path / "secrets.json") if folder.ours else {}
    ours: dict[str, None] = {}
    for name, secret in (
        ("database_url", "admin"),
        ("valkey_url", "valkey"),
        ("redis_url", "valkey"),
    ):
        url = getattr(settings, name)
        if url is not None and secret in known and known[secret] in url.get_secret_value():
            ours[name] = None
    if known and os.environ.get("AWS_SECRET_ACCESS_KEY") == known.get("s3_secret"):
        ours |= {"aws_endpoint_url_s3": None, "bucket_name": None}
    return settings.model_copy(update=ours)


def _held(attachment: Attachment | None) -> Attachment:
    assert attachment is not None  # noqa: S101 -- resolve attaches whenever one is missing
    return attachment


def _embedded_store(held: Attachment) -> StoreEndpoint:
    engine = held.engines["s3"]
    label = "local S3 store (rclone, on disk)"
    if engine.emulated:
        label = "local S3 emulation (moto, in memory, signatures not checked)"
    return StoreEndpoint(
        label=label,
        address=f"{HOST}:{engine.port}",
        host=HOST,
        port=engine.port,
        arguments={
            "endpoint_url": f"http://{HOST}:{engine.port}",
            "aws_access_key_id": held.secrets["s3_key"],
            "aws_secret_access_key": held.secrets["s3_secret"],
            "region_name": "us-east-1",
            # An empty choice of proxies: none of the environment's is asked for this machine.
            "config": _store_manners(plain=True).merge(Config(proxies={})),
        },
        embedded=True,
        emulated=engine.emulated,
        bucket=EMBEDDED_BUCKET,
        create_bucket=True,
    )


def external_database(settings: Settings) -> DatabaseEndpoint | None:
    """Where the settings say that the database is; None if it is the local engine."""
    if settings.dsql_endpoint:
        return _dsql(settings.dsql_endpoint, str(settings.aws_region))
    if not settings.database_url:
        return None
    try:
        found: dict[str, Any] = parse_dsn(settings.database_url.get_secret_value())
        host, port = _host_and_port(found, 5432)
        found["connect_timeout"] = int(found.get("connect_timeout", CONNECT_S))
    except (psycopg2.ProgrammingError, ValueError) as error:
        # The library's own message repeats the text, and with it the password; what it calls an
        # option is one, unless an @ shows that it is the end of a password that was not escaped.
        unknown = _UNKNOWN_OPTION.search(str(error))
        if unknown and "@" not in settings.database_url.get_secret_value().partition("?")[2]:
            raise SettingsError(
                f"DATABASE_URL has an option {unknown[1]!r}, which PostgreSQL's client library "
                "does not know. Correct it, or leave it out."
            ) from None
        raise SettingsError(
            "DATABASE_URL is not a PostgreSQL address. Its form is "
            f"postgresql://user:password@host:port/database; {ESCAPES}"
        ) from None
    if service := os.environ.get("PGSERVICE"):
        found.setdefault("service", service)  # a local engine's clients remove the variable
    return DatabaseEndpoint(
        label="PostgreSQL of your own (DATABASE_URL)",
        address=_address(host, port),
        host=host,
        port=port,
        arguments={**found, "host": host, "port": port},
        tls=found.get("sslmode") in {"verify-full", "verify-ca"},
        dsql_rules=settings.dsql_rules == "on",
    )


def external_reader(settings: Settings) -> DatabaseEndpoint | None:
    """Another endpoint of the same data, for the reads of a load test, if the settings name one."""
    if not settings.dsql_read_endpoint:
        return None
    # Perhaps the other end of a cluster over two Regions: a token is for one of them.
    return _dsql(settings.dsql_read_endpoint, dsql_region(settings.dsql_read_endpoint))


def _dsql(host: str, region: str) -> DatabaseEndpoint:
    return DatabaseEndpoint(
        label=f"Aurora DSQL in {region}",
        address=f"{host}:5432",
        host=host,
        port=5432,
        arguments={
            **isolate_libpq(),
            "host": host,
            "port": 5432,
            "user": "admin",
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": trusted_certificates(),
            "connect_timeout": CONNECT_S,
            "require_auth": "password",  # a token is sent as it is, within TLS
        },
        aws=True,
        tls=True,
        token=_TokenMaker(host, region),
        signing={"region_name": region},
    )


@dataclass(frozen=True)
class _TokenMaker:
    """Signs a new password when called. It can travel to another process, as a client cannot."""

    host: str
    region: str

    def __call__(self) -> str:
        try:
            return str(
                self._client.generate_db_connect_admin_auth_token(
                    Hostname=self.host, Region=self.region, ExpiresIn=TOKEN_LIFE_S
                )
            )
        except (BotoCoreError, ClientError) as error:  # the latter where a role is to be assumed
            raise ServiceUnreachableError(
                f"No sign-in token for Aurora DSQL could be made: {error_help(error)}"
            ) from None

    @cached_property
    def _client(self) -> Any:
        """Kept: building one takes 40 ms."""
        return boto3.Session().client("dsql", region_name=self.region)

    def __reduce__(self) -> tuple[type[_TokenMaker], tuple[str, str]]:
        return _TokenMaker, (self.host, self.region)


def external_cache(settings: Settings) -> CacheEndpoint | None:
    """Where the settings say that the cache is; None if it is the local engine."""
    if settings.valkey_endpoint:
        host = settings.valkey_endpoint
        return CacheEndpoint(
            label="ElastiCache for Valkey",
            address=f"{host}:6379",
            host=host,
            port=6379,
            arguments={
                "host": host,
                "port": 6379,
                "ssl": True,
                "ssl_ca_certs": trusted_certificates(),
                **_cache_manners(),
            },
            aws=True,
            tls=True,
        )
    if settings.cache_url is None:
        return None
    found = parse_cache_url(settings.cache_url.get_secret_value())
    host, port = found["host"], found["port"]
    return CacheEndpoint(
        label="Valkey of your own (VALKEY_URL)",
        address=_address(host, port),
        host=host,
        port=port,
        arguments={**_cache_manners(), **found},
        tls=found["ssl"] and found.get("ssl_cert_reqs") != "none",
    )


def external_store(settings: Settings) -> StoreEndpoint | None:
    """Where the settings say that objects are; None if it is the local engine."""
    if not settings.bucket_name:
        return None
    url = settings.aws_endpoint_url_s3
    region = settings.aws_region or "us-east-1"
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
    arguments: dict[str, Any] = {"region_name": region, "config": _store_manners(plain=bool(url))}
    if url:
        arguments["endpoint_url"] = url
    return StoreEndpoint(
        label="S3 store of your own (AWS_ENDPOINT_URL_S3)" if url else f"Amazon S3 in {region}",
        address=f"{place.hostname}:{port}",
        host=place.hostname,
        port=port,
        arguments=arguments,
        aws=not url,
        tls=place.scheme == "https",
        bucket=settings.bucket_name,
    )


def _host_and_port(found: Mapping[str, Any], port: int) -> tuple[str, int]:
    """Where a parsed address points; `port` if it names none.

    Raises:
        ValueError: the host holds an @, so it is the end of a password that was not escaped; or
            the port is none.

    """
    host = str(found.get("host", "localhost"))
    if "@" in host:
        raise ValueError("not a host name")
    number = int(found.get("port", port))
    if not 0 < number < 65536:
        raise ValueError("not a port")
    return host, number


def _address(host: str, port: int) -> str:
    """Host and port in one; that of IPv6 stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cache_manners() -> dict[str, Any]:
    """Bounded waits; one more try, for a connection that the server closed while it was idle.

    Not after silence: the second try would double the wait.
    """
    return {
        "socket_connect_timeout": CACHE_TIMEOUT_S,
        "socket_timeout": CACHE_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=(LostConnection,)),
    }


def _store_manners(*, plain: bool) -> Config:
    """Bounded waits; `plain` leaves out what only Amazon S3 itself understands."""
    manners = Config(
        connect_timeout=CONNECT_S,
        read_timeout=20,
        retries={"max_attempts": 2, "mode": "standard"},
        # The Region's own name also in us-east-1: it is the one that the checks ask about.
        s3={"us_east_1_regional_endpoint": "regional"},
    )
    if not plain:
        return manners
    return manners.merge(
        Config(
            # A store on this machine, or in the next room: one that is silent for so long is stuck.
            read_timeout=8,
            retries={"total_max_attempts": 2, "mode": "standard"},
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
    )
