"""Clients of local engines that take nothing from the environment or from the home directory."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import certifi
import psycopg2
from psycopg2.extensions import parse_dsn

if TYPE_CHECKING:
    import boto3

    from workshop_lib.services.endpoints import Endpoint

_OPTIONS = """
    application_name= channel_binding=prefer client_encoding=UTF8 gssdelegation=0
    gssencmode=disable gsslib= hostaddr= krbsrvname=postgres load_balance_hosts=disable
    max_protocol_version=3.0 min_protocol_version=3.0 options= passfile= require_auth= requirepeer=
    ssl_max_protocol_version= ssl_min_protocol_version=TLSv1.2 sslcert= sslcertmode=disable
    sslcompression=0 sslcrl= sslcrldir= sslkey= sslmode=disable sslnegotiation=postgres
    sslrootcert= sslsni=1 target_session_attrs=any
"""
"""Every option that libpq reads from the environment if it is not given, except those that say
where to connect and as whom. PostgreSQL's documentation, "Environment Variables"."""
_LIBPQ_ALWAYS_READS = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""What no option overrides: PGSERVICE has to name a service that exists, and the others go to the
server with the sign-in, which refuses a value that it does not know."""


_AWS_KEPT = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"),
}
"""What a client's arguments override, and what settings name."""


def isolate_aws() -> None:
    """Keep a cell's own boto3 clients of local engines from the caller's profile and files.

    Of a profile that does not exist, or a setting such as AWS_USE_FIPS_ENDPOINT, boto3 complains
    whatever its arguments are.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in _AWS_KEPT:
            del os.environ[name]
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        os.environ[name] = os.devnull


def isolate_libpq() -> dict[str, str]:
    """Keep libpq from its environment: remove the variables that no option of it overrides.

    Returns:
        Arguments of psycopg2.connect that override all others; the caller's go on top of them.

    """
    for name in _LIBPQ_ALWAYS_READS:
        os.environ.pop(name, None)
    return _known_options()


@cache
def _known_options() -> dict[str, str]:
    """Those that this libpq knows: which they are depends on its age."""
    known = {}
    for name, value in (option.split("=") for option in _OPTIONS.split()):
        with contextlib.suppress(psycopg2.ProgrammingError):
            parse_dsn(f"{name}=''")
            known[name] = value
    return known


def session_for(endpoint: Endpoint) -> boto3.Session:
    """A session of boto3 for clients of this endpoint: plain for a local engine, else configured.

    One of its own each time: boto3's shared one remembers the first credentials that it met.
    """
    import boto3  # noqa: PLC0415 -- the supervisor needs none of AWS

    return plain_session() if endpoint.embedded else boto3.Session()


def plain_session() -> boto3.Session:
    """A session of boto3 that reads no AWS_* variable and nothing below ~/.aws."""
    import boto3  # noqa: PLC0415 -- as above
    from botocore.loaders import Loader  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    variables: dict[str, Any] = {
        name: (None, None, default, convert)
        for name, (_, _, default, convert) in Session.SESSION_VARIABLES.items()
    }
    variables |= dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    variables["ignore_configured_endpoint_urls"] = (None, None, True, None)
    session = Session(variables)
    session.get_component("config_store").set_config_variable("s3", {})
    models = Loader(
        extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False
    )
    session.register_component("data_loader", models)
    return boto3.Session(botocore_session=session)


def ca_bundle() -> str:
    """The file with the authorities by which the certificates of database and cache are verified.

    The public ones that certifi keeps, Amazon's among them; or the file that AWS_CA_BUNDLE names,
    which boto3 uses as well: for a network whose proxy shows certificates of its own.
    """
    return os.environ.get("AWS_CA_BUNDLE") or certifi.where()
