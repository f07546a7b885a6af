"""What a stack costs an hour before any load: its template's prices times what it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.aws.console import table
from workshop_lib.aws.template import Template

HOURS_A_MONTH = 730
HOST_SIZES = {"medium": 1, "large": 2, "xlarge": 4}
"""Each size of a host costs twice the one before (EC2 prices on demand)."""
BY_USE = (
    "Not counted, because use decides: the database (DPU and storage), the cache beyond 100 MB and "
    "its ECPU, objects, messages, executions, logs, and each GB through an endpoint or NAT gateway."
)


@dataclass(frozen=True, slots=True)
class Charge:
    """What is charged by the hour.

    Attributes:
        what: it is, with its number.
        usd: an hour, for all of them, in us-east-1.

    """

    what: str
    usd: float


def charges(template: Template, values: Mapping[str, str]) -> list[Charge]:
    """What a stack with these parameters is charged for by the hour."""
    if not template.prices:
        return []
    resources = template.made_with(values)
    prices = template.prices

    def count(kind: str, **properties: str) -> int:
        return sum(
            one["Type"] == kind and properties.items() <= _plain(one).items()
            for one in resources.values()
        )

    host = prices["HostMedium" if values["Architecture"] == "arm64" else "HostMediumX86"]
    size = HOST_SIZES[values["NotebookHostSize"]]
    counted = [
        (count("AWS::EC2::VPCEndpoint", VpcEndpointType="Interface"), "interface endpoints",
         prices["InterfaceEndpoint"]),
        (count("AWS::EC2::NatGateway"), "NAT gateway with its address",
         prices["NatGateway"] + prices["NatAddress"]),
        (count("AWS::ElastiCache::ServerlessCache"), "cache, at its least of 100 MB",
         prices["CacheMinimum"]),
        (count("AWS::EC2::Instance"), "notebook host while it runs", host * size),
        (count("AWS::EC2::Instance"), "disk of the host", prices["HostDisk"]),
        (count("AWS::CloudWatch::Dashboard"), "dashboard (an account's first three are free)",
         prices["Dashboard"]),
        (count("AWS::CloudWatch::Alarm"), "alarms", prices["Alarm"]),
    ]  # fmt: skip
    return [Charge(f"{number} {what}", number * usd) for number, what, usd in counted if number]


def per_hour(template: Template, values: Mapping[str, str]) -> float:
    """USD an hour, in us-east-1."""
    return sum(charge.usd for charge in charges(template, values))


def price_lines(template: Template, values: Mapping[str, str], region: str) -> list[str]:
    """The charges to read, and their sum."""
    found = charges(template, values)
    if not found:
        return ["It costs nothing an hour; writes and storage are charged by use."]
    total = sum(charge.usd for charge in found)
    rows = [(f"{charge.usd:.4f}", charge.what) for charge in found]
    where = "" if region == "us-east-1" else f" Prices in {region} differ somewhat."
    return [
        "What it costs before any load, USD an hour in us-east-1:",
        *table(rows),
        f"  {total:.4f}  together; {total * HOURS_A_MONTH:.0f} USD if it stays for a month",
        BY_USE + where,
    ]


def _plain(resource: Mapping[str, Any]) -> dict[str, str]:
    """A resource's properties that are plain words."""
    found = resource.get("Properties", {})
    return {name: value for name, value in found.items() if isinstance(value, str)}
