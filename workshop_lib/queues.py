"""Queues as a load test uses them: one with its dead-letter queue, and errors that say what to do.

Where the queue is given (on AWS), it is used as it is; elsewhere each workshop makes its own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import MessagingEndpoint, running_messaging
from workshop_lib.services.client_config import session_for
from workshop_lib.services.error_help import advice, cause_of, error_text
from workshop_lib.settings import Settings

NAME = re.compile(r"[A-Za-z0-9_-]{1,30}")
LONGEST_VISIBILITY_S = 43_200
MOST_RECEIVES = 1_000


def messaging_client(endpoint: MessagingEndpoint, service: str) -> Any:
    """A boto3 client of "sqs" or "cloudwatch" for the endpoint, in a session of its own.

    Raises:
        ServiceUnreachableError: the configuration of AWS does not allow for one.

    """
    with _said(endpoint):
        make: Any = session_for(endpoint).client  # typed for names that are written out only
        return make(service, **endpoint.arguments)


def open_queue(
    sqs: Any,
    endpoint: MessagingEndpoint,
    namespace: str,
    name: str,
    *,
    visibility_timeout_s: int,
    max_receives: int,
) -> tuple[str, str]:
    """The URLs of a queue and of its dead-letter queue; as `Workshop.open_queue`.

    Raises:
        ValueError: an argument is out of range.
        ServiceUnreachableError: no answer, no such queue, or it has no dead-letter queue.

    """
    if not NAME.fullmatch(name):
        raise ValueError(f"name is {name!r}; it must be 1 to 30 letters, digits, - or _")
    _whole("visibility_timeout_s", visibility_timeout_s, 0, LONGEST_VISIBILITY_S)
    _whole("max_receives", max_receives, 1, MOST_RECEIVES)
    with _said(endpoint):
        if endpoint.queue_url:
            return endpoint.queue_url, _dead_letters_of(sqs, endpoint.queue_url)
        dead = str(sqs.create_queue(QueueName=f"{namespace}-{name}-dead")["QueueUrl"])
        redrive = {
            "deadLetterTargetArn": _attribute(sqs, dead, "QueueArn"),
            "maxReceiveCount": max_receives,
        }
        # Attributes apart: a queue that is there already with others would refuse to be created.
        queue = str(sqs.create_queue(QueueName=f"{namespace}-{name}")["QueueUrl"])
        sqs.set_queue_attributes(
            QueueUrl=queue,
            Attributes={
                "VisibilityTimeout": str(visibility_timeout_s),
                "RedrivePolicy": json.dumps(redrive),
            },
        )
        return queue, dead


def describe_queue(sqs: Any, endpoint: MessagingEndpoint) -> str:
    """The given queue in a few words: whether it answers, and is one for load tests.

    Raises:
        ServiceUnreachableError: no answer, no such queue, or it has no dead-letter queue.

    """
    names = ["VisibilityTimeout", "RedrivePolicy", "ApproximateNumberOfMessages"]
    with _said(endpoint):
        found = sqs.get_queue_attributes(QueueUrl=endpoint.queue_url, AttributeNames=names)
    about = found.get("Attributes", {})
    policy = _redrive(about.get("RedrivePolicy", ""))
    return (
        f"about {about.get('ApproximateNumberOfMessages', '?')} messages; one that was received "
        f"stays hidden for {about.get('VisibilityTimeout', '?')} s, and after "
        f"{policy.get('maxReceiveCount', '?')} times is a dead letter"
    )


def delete_queues(sqs: Any, endpoint: MessagingEndpoint, namespace: str) -> int:
    """Delete the queues that this namespace made. Returns how many; a given queue stays.

    Raises:
        ServiceUnreachableError: no answer.

    """
    if endpoint.queue_url:
        return 0
    with _said(endpoint):
        found = sqs.list_queues(QueueNamePrefix=f"{namespace}-").get("QueueUrls", [])
        for url in found:
            sqs.delete_queue(QueueUrl=url)
    return len(found)


def delete_own_queues(settings: Settings) -> None:
    """Delete a workshop's queues; an emulation that does not run has none.

    Raises:
        ServiceUnreachableError: no answer.

    """
    running = running_messaging(settings)
    if running is None:
        return
    endpoint, release = running
    try:
        delete_queues(messaging_client(endpoint, "sqs"), endpoint, settings.workshop_namespace)
    finally:
        release()


def messaging_error(error: Exception, endpoint: MessagingEndpoint) -> ServiceUnreachableError:
    """What went wrong between us and the queues or metrics, and what to do.

    Args:
        error: of boto3: a ClientError or a BotoCoreError.
        endpoint: where it happened.

    """
    place = f"{endpoint.label} at {endpoint.address}"
    again = (
        "It starts again with the next open_workshop(), without the queues, messages and metrics "
        "it had: run the notebook from its first cell."
    )
    cause = cause_of(error, endpoint)
    if endpoint.embedded and cause == "not there":
        return ServiceUnreachableError(
            f"There is no such queue in the {place}. It may have been restarted, which empties "
            "it: ws.open_queue(…) makes the queue again."
        )
    if endpoint.embedded and cause in {"not allowed", "key unknown", "secret wrong"}:
        return ServiceUnreachableError(
            f"What answers at {endpoint.address} is not this checkout's emulation of SQS and "
            f"CloudWatch: it refuses our key. {again}"
        )
    answered = isinstance(error, ClientError)
    about = place if answered else f"No answer from {place}"
    what_next = again if endpoint.embedded and not answered else advice(error, endpoint)
    return ServiceUnreachableError(f"{about}: {error_text(error)} {what_next}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high:,}")


def _dead_letters_of(sqs: Any, queue: str) -> str:
    policy = _redrive(_attribute(sqs, queue, "RedrivePolicy"))
    *_, account, name = policy["deadLetterTargetArn"].split(":")
    return str(sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"])


def _redrive(text: str) -> dict[str, str]:
    policy: dict[str, str] = json.loads(text or "{}")
    if "deadLetterTargetArn" not in policy:
        raise ServiceUnreachableError(
            "The queue of QUEUE_URL has no dead-letter queue, where messages go that keep failing. "
            "Give it one (its RedrivePolicy, with a maxReceiveCount), or use the queue of the "
            "workshop's own stack."
        )
    return policy


def _attribute(sqs: Any, queue: str, name: str) -> str:
    found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=[name])
    return str(found.get("Attributes", {}).get(name, ""))


@contextlib.contextmanager
def _said(endpoint: MessagingEndpoint) -> Iterator[None]:
    """Say the client library's errors in our words."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise messaging_error(error, endpoint) from None
