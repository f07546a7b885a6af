"""Find SQS and CloudWatch: on AWS, or emulated here; apart, because few notebooks need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.config import Config

from workshop_lib.services import local
from workshop_lib.services.endpoints import MessagingEndpoint
from workshop_lib.services.engines import CloudEmulation
from workshop_lib.services.local import Attachment
from workshop_lib.services.protocol import HOST
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import Settings

REGION = "us-east-1"
"""What the emulation goes by."""
CONNECT_S = 5
ANSWER_S = 30
"""SQS itself waits up to 20 s for messages when asked to."""
CONNECTIONS = 64
"""What one client keeps open; boto3's own 10 would have the threads of a load test queue here."""

Release = Callable[[], None]


def resolve_messaging(settings: Settings) -> tuple[MessagingEndpoint, Release]:
    """Find the queues and metrics, starting the emulation if it is needed.

    The emulation keeps all in memory: if it is killed, the supervisor starts it again at the same
    address, but queues, messages and metrics are gone.

    Returns:
        Where they are, and what to call when done with them.

    Raises:
        EngineError: the emulation could not be started.

    """
    if settings.queue_url is not None:
        return _on_aws(settings), lambda: None
    name = CloudEmulation.kind
    held = local.attach(state_folder(settings.workshop_state_dir), [name], settings)
    return _emulated(held), held.release


def running_messaging(settings: Settings) -> tuple[MessagingEndpoint, Release] | None:
    """As `resolve_messaging` if the emulation is in use and runs already; starts nothing."""
    if settings.queue_url is not None:
        return None
    running = local.status(state_folder(settings.workshop_state_dir)).engines
    up = {engine.name for engine in running if engine.status == "up"}
    return resolve_messaging(settings) if CloudEmulation.kind in up else None


def given_messaging(settings: Settings) -> MessagingEndpoint | None:
    """Where the settings say that the queue is; None if it is the emulation's."""
    return _on_aws(settings) if settings.queue_url is not None else None


def _on_aws(settings: Settings) -> MessagingEndpoint:
    assert settings.queue_url is not None  # noqa: S101 -- only called if it is
    region = str(settings.aws_region)
    host = f"sqs.{region}.amazonaws.com"
    return MessagingEndpoint(
        label=f"Amazon SQS and CloudWatch in {region}",
        address=f"{host}:443",
        host=host,
        port=443,
        arguments={"region_name": region, "config": _manners()},
        aws=True,
        tls=True,
        region=region,
        queue_url=settings.queue_url.get_secret_value(),
    )


def _emulated(held: Attachment) -> MessagingEndpoint:
    port = held.engines[CloudEmulation.kind].port
    return MessagingEndpoint(
        label="local emulation of SQS and CloudWatch (moto, in memory, signatures not checked)",
        address=f"{HOST}:{port}",
        host=HOST,
        port=port,
        arguments={
            "endpoint_url": f"http://{HOST}:{port}",
            "aws_access_key_id": held.secrets["s3_key"],
            "aws_secret_access_key": held.secrets["s3_secret"],
            "region_name": REGION,
            # An empty choice of proxies: none of the environment's is asked for this machine.
            "config": _manners(proxies={}),
        },
        embedded=True,
        emulated=True,
        region=REGION,
    )


def _manners(**more: Any) -> Config:
    """Bounded waits, and one more try."""
    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=ANSWER_S,
        retries={"total_max_attempts": 2, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        **more,
    )
