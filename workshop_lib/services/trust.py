"""Whose certificates are believed."""

from __future__ import annotations

import os

import certifi


def trusted_certificates() -> str:
    """The file with the authorities by which the certificates of database and cache are verified.

    The public ones that certifi keeps, Amazon's among them; or the file that AWS_CA_BUNDLE names,
    which boto3 uses as well: for a network whose proxy shows certificates of its own.
    """
    return os.environ.get("AWS_CA_BUNDLE") or certifi.where()
