"""The two sides of a database over two Regions: how their stacks are called and find each other."""

from __future__ import annotations

from workshop_lib.aws.stacks import Stack

PEER = "PeerClusterArn"


def database_stack(workshop: str) -> str:
    """What the stack of a side is called that belongs to a workshop's stack."""
    return f"{workshop}-database"


def region_of(arn: str) -> str:
    """The Region in an ARN; empty if there is none.

    >>> region_of("arn:aws:dsql:us-east-2:123456789012:cluster/abc")
    'us-east-2'
    """
    parts = arn.split(":")
    return parts[3] if len(parts) > 3 else ""


def other_region(side: Stack) -> str:
    """Where the other side is; empty if it is not known yet."""
    return region_of(side.parameters.get(PEER, ""))
