"""The services that the settings name, found without ever starting a local engine."""

from __future__ import annotations

from workshop_lib.errors import SettingsError
from workshop_lib.services.endpoints import CacheEndpoint, DatabaseEndpoint, MessagingEndpoint
from workshop_lib.services.messaging import given_messaging
from workshop_lib.services.resolver import external_cache, external_database, external_reader
from workshop_lib.settings import Settings


def named_database(settings: Settings) -> DatabaseEndpoint:
    """The database that a worker on another machine is to use.

    Raises:
        SettingsError: the settings name none, or not in its form.

    """
    found = external_database(settings)
    if found is None:
        raise SettingsError(
            "This worker is not told which database to use. On AWS Lambda, set DSQL_ENDPOINT in "
            "the function's environment (AWS_REGION is there already); elsewhere DSQL_ENDPOINT "
            "with AWS_REGION, or DATABASE_URL. Workers on this machine get it from LocalWorkers."
        )
    return found


def named_reader(settings: Settings) -> DatabaseEndpoint | None:
    """The endpoint for reads, where the settings name one of their own."""
    return external_reader(settings)


def named_cache(settings: Settings) -> CacheEndpoint | None:
    """The cache, where the settings name one."""
    return external_cache(settings)


def named_messaging(settings: Settings) -> MessagingEndpoint | None:
    """The queues and metrics, where the settings name them."""
    return given_messaging(settings)


def named_region(settings: Settings) -> str | None:
    """The Region of the services on AWS, where the settings name one."""
    return settings.aws_region


def is_on_aws(settings: Settings) -> bool:
    """Whether the database is Aurora DSQL, which is paid for."""
    return settings.dsql_endpoint is not None
