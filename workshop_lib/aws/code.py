"""What the workshop itself puts into the stack's bucket: the load worker's zip, and the objects."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from workshop_lib.aws.plain import plainly
from workshop_lib.dataset import Sizes, list_objects, load_objects
from workshop_lib.dataset.generators import objects
from workshop_lib.services.error_help import error_code

SETUP = "setup/"
"""What the names of all that is no data begin with."""
WORKER = f"{SETUP}load-worker-"


def worker_key(package: Path) -> str:
    """The key of a zip: another one for other contents, because a stack looks at the key only."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return f"{WORKER}{digest[:16]}.zip"


def put_worker(s3: Any, bucket: str, key: str, package: Path) -> bool:
    """Put the zip into the bucket. Returns whether that was needed.

    Raises:
        AwsError: S3 does not answer, or refuses.

    """
    with plainly(f"put the load worker into the bucket {bucket}"):
        if _is_there(s3, bucket, key):
            return False
        s3.put_object(Bucket=bucket, Key=key, Body=package.read_bytes())
        return True


def drop_old_workers(s3: Any, bucket: str, key: str) -> int:
    """Delete the zips that the function had before. Returns how many.

    Not before the function has the new one: going back takes the old one.

    Raises:
        AwsError: S3 does not answer, or refuses.

    """
    with plainly(f"delete old load workers in the bucket {bucket}"):
        old = [found for found in list_objects(s3, bucket, WORKER) if found != key]
        for found in old:
            s3.delete_object(Bucket=bucket, Key=found)
    return len(old)


def put_objects(s3: Any, bucket: str, namespace: str) -> str:
    """Load the workshop's objects, unless somebody has changed what is there.

    Returns:
        What became of it.

    Raises:
        AwsError: S3 does not answer, or refuses.

    """
    prefix, sizes = f"{namespace}/", Sizes()
    wanted = {prefix + name for name, _ in objects(sizes.objects, sizes.seed)}
    with plainly(f"load the objects into the bucket {bucket}"):
        present = set(list_objects(s3, bucket, prefix))
        if present >= wanted:
            return f"the {len(wanted)} objects are there already"
        if present - wanted:
            return (
                f"the objects under {prefix} are left alone, because some are not of this command; "
                "notebook 01 loads them"
            )
        new = load_objects(s3, bucket, prefix, sizes).new
    return f"{new} objects loaded"


def _is_there(s3: Any, bucket: str, key: str) -> bool:
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_code(error) in {"404", "NoSuchKey", "NotFound"}:
            return False
        raise
    return True
