"""Queues as a load test uses them: one with its dead-letter queue, and errors that say what to do.

Where the queue is given (on AWS), it is used as it is; elsewhere each workshop makes its own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import MessagingEndpoint

NAME = re.compile(r"[A-Za-z0-9_-]{1,30}")
LONGEST_VISIBILITY_S = 43_200
MOST_RECEIVES = 1_000
GONE = {"QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"}
REFUSED = {
    "403",
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


def messaging_client(endpoint: MessagingEndpoint, service: str) -> Any:
    """A boto3 client of "sqs" or "cloudwatch" for the endpoint, in a session of its own."""
    make: Any = boto3.Session().client  # typed for names that are written out only
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
    if not isinstance(error, ClientError):
        advice = again if endpoint.embedded else "Is there a way to it from here, and a sign-in?"
        return ServiceUnreachableError(f"No answer from {place}: {error}. {advice}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in GONE and endpoint.embedded:
        return ServiceUnreachableError(
            f"There is no such queue in the {place}. It may have been restarted, which empties "
            "it: ws.open_queue(…) makes the queue again."
        )
    if code in GONE:
        return ServiceUnreachableError(
            f"There is no such queue in {place}: correct QUEUE_URL, or create the queue."
        )
    if code in REFUSED and endpoint.embedded:
        return ServiceUnreachableError(
            f"What answers at {endpoint.address} is not this checkout's emulation of SQS and "
            f"CloudWatch: it refuses our key. {again}"
        )
    if code in REFUSED:
        return ServiceUnreachableError(
            f"{place} refuses these credentials ({code}): `aws sts get-caller-identity` shows who "
            "you are; that role needs permission for the queue of QUEUE_URL and for metrics."
        )
    return ServiceUnreachableError(f"{place} answers {error}.")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high:,}")


def _dead_letters_of(sqs: Any, queue: str) -> str:
    policy = json.loads(_attribute(sqs, queue, "RedrivePolicy") or "{}")
    if "deadLetterTargetArn" not in policy:
        raise ServiceUnreachableError(
            "The queue of QUEUE_URL has no dead-letter queue, where messages go that keep failing. "
            "Give it one (its RedrivePolicy, with a maxReceiveCount), or use the queue of the "
            "workshop's own stack."
        )
    *_, account, name = policy["deadLetterTargetArn"].split(":")
    return str(sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"])


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
