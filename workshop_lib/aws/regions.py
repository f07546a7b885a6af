"""Which Region, and which Regions a database can span."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache

import boto3

from workshop_lib.aws.plain import plainly
from workshop_lib.errors import AwsError

_FORM = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
# A DSQL cluster over two Regions and a witness takes all three from one set (AWS Backup Developer
# Guide, "Amazon Aurora DSQL backups"; Aurora DSQL User Guide, whose example has us-west-2 as the
# witness). AWS adds Regions, so what is not listed here is for AWS to judge, within a continent.
SETS = (
    frozenset({"us-east-1", "us-east-2", "us-west-2"}),
    frozenset({"eu-west-1", "eu-west-2", "eu-west-3", "eu-central-1"}),
    frozenset({"ap-northeast-1", "ap-northeast-2", "ap-northeast-3"}),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A Region, and where its name was found."""

    region: str
    source: str


def find_region(given: str | None) -> Place:
    """The Region that an option, AWS_REGION, or boto3's configuration names; no network.

    Raises:
        AwsError: none does, or boto3 knows no such Region.

    """
    with plainly("read boto3's configuration"):
        configured = boto3.Session().region_name
    named = {
        "--region": given,
        "AWS_REGION": os.environ.get("AWS_REGION"),
        "boto3's configuration": configured,
    }
    for source, region in named.items():
        if region:
            check_region(region, source)
            return Place(region, source)
    raise AwsError(
        "No AWS Region is set. Give --region us-east-1, set AWS_REGION, or run `aws configure`."
    )


def check_region(region: str, source: str) -> None:
    """Refuse what is no Region.

    Raises:
        AwsError: boto3 knows no such Region.

    """
    known = _known()
    if region in known:
        return
    near = difflib.get_close_matches(region, known, 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Regions are named like us-east-1."
    news = " (One newer than boto3 needs a newer boto3.)" if _FORM.fullmatch(region) else ""
    raise AwsError(f"{region!r} (from {source}) is no Region that boto3 knows. {hint}{news}")


@cache
def _known() -> list[str]:
    """All Regions of the installed boto3, which needs no network for it."""
    session = boto3.Session(region_name="us-east-1")
    return [
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions("ec2", partition)
    ]


def check_span(regions: tuple[str, str], witness: str) -> str:
    """Refuse Regions that one database cannot span.

    Returns:
        A doubt to tell; empty if the three are known to go together.

    Raises:
        AwsError: two are the same, or they are on different continents.

    """
    all_three = (*regions, witness)
    if len(set(all_three)) < 3:
        raise AwsError(
            f"Two of {', '.join(all_three)} are the same. A database over two Regions needs two, "
            "and a third as the witness."
        )
    for region in all_three:
        check_region(region, "--witness" if region == witness else "--regions")
    if any(one >= set(all_three) for one in SETS):
        return ""
    listed = "; ".join(", ".join(sorted(one)) for one in SETS)
    if len({region.split("-", 1)[0] for region in all_three}) > 1:
        raise AwsError(
            f"{', '.join(all_three)} are too far apart: the Regions of one database have to be in "
            f"the same part of the world. Known sets: {listed}."
        )
    return (
        f"{', '.join(all_three)} are in no set that is known to go together ({listed}). AWS will "
        "say whether they do."
    )
