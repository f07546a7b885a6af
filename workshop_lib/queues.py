"""Queues as a load test uses them: one with its dead-letter queue, and errors that say what to do.

Where the queue is given (on AWS), it is used as it is; elsewhere each workshop makes its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import MessagingEndpoint, aws_client, messaging_runs, resolve_messaging
from workshop_lib.services.error_help import advice, cause_of, error_text
from workshop_lib.settings import Settings

T = TypeVar("T")


def _explained(call: Callable[..., T]) -> Callable[..., T]:
    """The same, with the client library's errors in our words; the endpoint is an argument."""

    @wraps(call)
    def explained(*args: Any, **kwargs: Any) -> T:
        try:
            return call(*args, **kwargs)
        except (ClientError, BotoCoreError) as error:
            (endpoint,) = (one for one in args if isinstance(one, MessagingEndpoint))
            raise messaging_error(error, endpoint) from None

    return explained


@_explained
def messaging_client(endpoint: MessagingEndpoint, service: str) -> Any:
    """A boto3 client of "sqs" or "cloudwatch" for the endpoint, in a session of its own.

    Raises:
        ServiceUnreachableError: the configuration of AWS does not allow for one.

    """
    return aws_client(service, endpoint.arguments)


@_explained
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
        ServiceUnreachableError: no answer, no such queue, or it has no dead-letter queue.

    """
    if endpoint.queue_url:
        policy = _redrive(_attributes(sqs, endpoint.queue_url, "RedrivePolicy"))
        *_, account, dead_name = policy["deadLetterTargetArn"].split(":")
        found = sqs.get_queue_url(QueueName=dead_name, QueueOwnerAWSAccountId=account)
        return endpoint.queue_url, str(found["QueueUrl"])
    dead = str(sqs.create_queue(QueueName=f"{namespace}-{name}-dead")["QueueUrl"])
    arn = _attributes(sqs, dead, "QueueArn")["QueueArn"]
    redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": max_receives}
    own = {"VisibilityTimeout": str(visibility_timeout_s), "RedrivePolicy": json.dumps(redrive)}
    # Attributes apart: a queue that is there already with others would refuse to be created.
    queue = str(sqs.create_queue(QueueName=f"{namespace}-{name}")["QueueUrl"])
    sqs.set_queue_attributes(QueueUrl=queue, Attributes=own)
    return queue, dead


@_explained
def describe_queue(sqs: Any, endpoint: MessagingEndpoint) -> str:
    """The given queue in a few words: whether it answers, and is one for load tests.

    Raises:
        ServiceUnreachableError: no answer, no such queue, or it has no dead-letter queue.

    """
    names = ("VisibilityTimeout", "RedrivePolicy", "ApproximateNumberOfMessages")
    about = _attributes(sqs, endpoint.queue_url, *names)
    return (
        f"about {about.get('ApproximateNumberOfMessages', '?')} messages; one that was received "
        f"stays hidden for {about.get('VisibilityTimeout', '?')} s, and after "
        f"{_redrive(about).get('maxReceiveCount', '?')} times is a dead letter"
    )


@_explained
def delete_queues(sqs: Any, endpoint: MessagingEndpoint, namespace: str) -> int:
    """Delete the queues that this namespace made. Returns how many; a given queue stays.

    Raises:
        ServiceUnreachableError: no answer.

    """
    if endpoint.queue_url:
        return 0
    found = sqs.list_queues(QueueNamePrefix=f"{namespace}-").get("QueueUrls", [])
    for url in found:
        sqs.delete_queue(QueueUrl=url)
    return len(found)


def delete_own_queues(settings: Settings) -> None:
    """Delete a workshop's queues; an emulation that does not run has none.

    Raises:
        ServiceUnreachableError: no answer.

    """
    if messaging_runs(settings):
        endpoint, release = resolve_messaging(settings)
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
    answered = isinstance(error, ClientError)
    what_next = advice(error, endpoint)
    if endpoint.embedded and cause_of(error, endpoint) == "not there":
        what_next = "It may have been restarted, which empties it: ws.open_queue(…) makes it again."
    elif endpoint.embedded and not answered:
        what_next = (
            "It starts again with the next open_workshop(), without the queues, messages and "
            "metrics it had: run the notebook from its first cell."
        )
    about = f"{'' if answered else 'No answer from '}{endpoint.label} at {endpoint.address}"
    return ServiceUnreachableError(f"{about}: {error_text(error)} {what_next}")


def _attributes(sqs: Any, queue: str, *names: str) -> dict[str, str]:
    found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=list(names))
    return dict(found.get("Attributes", {}))


def _redrive(attributes: dict[str, str]) -> dict[str, str]:
    policy: dict[str, str] = json.loads(attributes.get("RedrivePolicy") or "{}")
    if "deadLetterTargetArn" not in policy:
        raise ServiceUnreachableError(
            "The queue of QUEUE_URL has no dead-letter queue, where messages go that keep failing. "
            "Give it one (its RedrivePolicy, with a maxReceiveCount), or use the queue of the "
            "workshop's own stack."
        )
    return policy
