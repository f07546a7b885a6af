"""The object store as a notebook uses it: objects of one prefix, and errors that say what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from posixpath import normpath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import DataError, ServiceUnreachableError, redact
from workshop_lib.services import StoreEndpoint, aws_client
from workshop_lib.services.error_help import error_code, error_help

if TYPE_CHECKING:
    from workshop_lib.services.latency_proxy import LatencyProxy

NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object.

    Attributes:
        body: its bytes.
        etag: names this content; another content has another one.
        seconds: from asking until the last byte was here.

    """

    body: bytes
    etag: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The object still is what it was; no bytes were sent.

    Attributes:
        seconds: from asking until the store had said so.

    """

    seconds: float


class ObjectStore:
    """The objects under one prefix of a bucket. A Workshop has one: `ws.objects`.

    Args:
        s3: a boto3 client.
        endpoint: where it is, and the bucket.
        prefix: what the names in the bucket begin with; ends with a slash.

    """

    def __init__(self, s3: Any, endpoint: StoreEndpoint, prefix: str) -> None:
        self.s3 = s3
        self.endpoint = endpoint
        self.prefix = prefix

    @property
    def identity(self) -> str:
        """Which store and bucket this is, stable over restarts and new ports."""
        return self.endpoint.identity

    def get(self, name: str) -> StoredObject | None:
        """An object, whole; None if there is none.

        Raises:
            ServiceUnreachableError: the store did not answer, or refused us.

        """
        found = self._get(name)
        assert not isinstance(found, Unchanged)  # noqa: S101 -- only a condition has that answer
        return found

    def get_if_changed(self, name: str, etag: str) -> StoredObject | Unchanged | None:
        """An object, unless it is still the one with this ETag; None if there is none any more.

        Raises:
            ServiceUnreachableError: as `get`.

        """
        return self._get(name, IfNoneMatch=etag)

    def put(self, name: str, body: bytes) -> str:
        """Write an object. Returns its ETag.

        Raises:
            TypeError: the body is neither bytes, bytearray nor memoryview.
            DataError: the local store cannot have it, or not beside another one.
            ServiceUnreachableError: as `get`.

        """
        from workshop_lib.cache.object_cache import as_bytes  # noqa: PLC0415 -- few need the caches

        body = as_bytes(body)
        if not self._is_one_file(name):
            raise DataError(
                f"{name!r} cannot be stored: the local store keeps objects as files, and this name "
                "would be that of another one's file (a slash at its end, or an empty part, . or "
                ".. between slashes). Amazon S3 takes it; choose another name."
            )
        with self._said():
            # Asked first: the local store would delete what is below the name, and then refuse.
            if self.endpoint.embedded and (other := self._in_the_way(name)):
                raise DataError(
                    f"{name!r} cannot be stored beside {other!r}: the local store keeps objects as "
                    "files, and one name cannot be a file and a folder. Amazon S3 takes both; "
                    "choose another name."
                )
            return str(self.s3.put_object(**self._place(name), Body=body)["ETag"])

    def delete(self, name: str) -> None:
        """Delete an object; it is no error if there is none.

        Raises:
            ServiceUnreachableError: as `get`.

        """
        if self._is_one_file(name):
            with self._said():
                self.s3.delete_object(**self._place(name))

    def _get(self, name: str, **conditions: str) -> StoredObject | Unchanged | None:
        started = time.perf_counter()
        if not self._is_one_file(name):
            return None
        with self._said():
            try:
                answer = self.s3.get_object(**self._place(name), **conditions)
                body = answer["Body"].read()
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status == NOT_MODIFIED:
                    return Unchanged(time.perf_counter() - started)
                if error_code(error) in {"NoSuchKey", "404"}:
                    return None
                raise
        return StoredObject(body, str(answer["ETag"]), time.perf_counter() - started)

    def _is_one_file(self, name: str) -> bool:
        """Whether the local store has a file for this name alone; any other store has an object."""
        key = self.prefix + name
        return not self.endpoint.embedded or normpath(key) == key

    def _in_the_way(self, name: str) -> str:
        """An object whose name goes on after a slash, or is this one's up to a slash, if any."""
        place = self._place(f"{name}/")
        listed = self.s3.list_objects_v2(Bucket=place["Bucket"], Prefix=place["Key"], MaxKeys=1)
        below = [str(one["Key"]).removeprefix(self.prefix) for one in listed.get("Contents", ())]
        parts = name.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return next(chain(below, (one for one in above if one and self.get(one) is not None)), "")

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self.endpoint.bucket, "Key": self.prefix + name}

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Say the client library's errors in our words."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise store_error(error, self.endpoint) from None


def store_error(error: Exception, endpoint: StoreEndpoint) -> ServiceUnreachableError:
    """What went wrong between us and the store, and what to do."""
    place = f"the object store at {endpoint.address} ({endpoint.label})"
    about = f"No answer from {place}"
    if isinstance(error, ClientError):
        about = f"The bucket {endpoint.bucket!r} of {place}"
    return ServiceUnreachableError(f"{redact(about)}: {error_help(error, endpoint)}")


def store_client(endpoint: StoreEndpoint) -> Any:
    """A boto3 S3 client for the endpoint.

    Raises:
        ServiceUnreachableError: the configuration of AWS does not allow for one.

    """
    try:
        return aws_client("s3", endpoint.arguments)
    except BotoCoreError as error:
        raise store_error(error, endpoint) from None


def steer(proxy: LatencyProxy, request: Any, **_: Any) -> None:
    """Send a request by the proxy's route. Before it is signed: the address is in the signature."""
    host, port = proxy.route
    request.url = urlsplit(request.url)._replace(netloc=f"{host}:{port}").geturl()


def greet_store(s3: Any, endpoint: StoreEndpoint) -> str:
    """Make sure that the bucket is there, creating the local one.

    Returns:
        The Region that it is in; empty where the store does not say.

    Raises:
        ServiceUnreachableError: the store does not answer, refuses us, or has no such bucket.

    """
    try:
        if endpoint.embedded:
            with contextlib.suppress(
                s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists
            ):
                s3.create_bucket(Bucket=endpoint.bucket)
        return _bucket_region(s3, endpoint.bucket)
    except (ClientError, BotoCoreError) as error:
        raise store_error(error, endpoint) from None


def _bucket_region(s3: Any, bucket: str) -> str:
    try:
        found = s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error_code(error) in {"400", "403"}:
            # The answer to a HEAD has no room for the reason. A list takes the same permission.
            s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
        raise
    return str(found.get("BucketRegion", ""))
