"""What the servers of the stand-in have in common: how they end, and who may do what."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Identity:
    """Whoever signs with a key.

    Attributes:
        key, secret: of the signature.
        state: "good", or "expired".
        statements: of the policies that hold for them; None for an administrator.

    """

    key: str
    secret: str
    state: str = "good"
    statements: list[dict[str, Any]] | None = None


class Identities:
    """Who there is, by access key: a JSON file that tests change while servers run."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read: tuple[int, dict[str, Identity]] = (0, {})

    def of(self, key: str) -> Identity | None:
        changed = self.file.stat().st_mtime_ns
        if changed != self._read[0]:
            found = json.loads(self.file.read_text())
            self._read = (changed, {one["key"]: Identity(**one) for one in found})
        return self._read[1].get(key)


def allowed(
    identity: Identity, action: str, resource: str, conditions: dict[str, str] | None = None
) -> bool:
    """Whether policies allow an action: some statement does, and none denies it.

    Args:
        identity: of whom.
        action: such as "s3:GetObject".
        resource: an ARN without partition and account: "s3:bucket/key"; "*" where there is none.
        conditions: the values of condition keys.

    """
    if identity.statements is None:
        return True
    effects = {
        one["Effect"]
        for one in identity.statements
        if any(fnmatchcase(action, pattern) for pattern in _listed(one["Action"]))
        and any(_names(pattern, resource) for pattern in _listed(one["Resource"]))
        and _holds(one.get("Condition", {}), conditions or {})
    }
    return effects == {"Allow"}


def run(port: int) -> None:
    """Say which port it is, and stay until standard input is closed."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _names(pattern: str, resource: str) -> bool:
    if pattern == "*" or resource == "*":
        return pattern in {resource, "*"}
    _, _, service, region, _, rest = pattern.split(":", 5)
    place = f"{service}:{region}:{rest}" if region else f"{service}:{rest}"
    return fnmatchcase(resource, place)


def _holds(wanted: dict[str, dict[str, str]], found: dict[str, str]) -> bool:
    return all(
        any(fnmatchcase(found.get(key, ""), pattern) for pattern in _listed(values))
        for test in wanted.values()
        for key, values in test.items()
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
