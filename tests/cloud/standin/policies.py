"""Identities: who signs with which key, and what their policies allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass
class Identity:
    """One that signs requests.

    Attributes:
        key, secret: of the signature.
        statements: of its policies; None for an administrator.
        role: its ARN, by which a database knows it.
        used: the actions that it was allowed, such as "s3:GetObject".

    """

    key: str
    secret: str
    statements: list[dict[str, Any]] | None = None
    role: str = ""
    used: set[str] = field(default_factory=set)

    def may(self, action: str, resource: str, **conditions: str) -> bool:
        """Whether its policies allow an action: a statement does, and none denies it.

        Args:
            action: such as "s3:GetObject".
            resource: an ARN without partition and account: "s3::bucket/key"; "*" where there is
                none.
            conditions: the values of condition keys, with _ for their colon.

        """
        if self.statements is None:
            return True
        effects = {
            one["Effect"]
            for one in self.statements
            if any(fnmatchcase(action, pattern) for pattern in _listed(one["Action"]))
            and any(_names(pattern, resource) for pattern in _listed(one["Resource"]))
            and _holds(one.get("Condition", {}), conditions)
        }
        allowed = effects == {"Allow"}
        self.used |= {action} if allowed else set()
        return allowed


def _names(pattern: str, resource: str) -> bool:
    if pattern == "*":
        return True
    _, _, service, region, _, rest = pattern.split(":", 5)
    return fnmatchcase(resource, f"{service}:{region}:{rest}")


def _holds(wanted: dict[str, dict[str, Any]], found: dict[str, str]) -> bool:
    return all(
        any(fnmatchcase(found.get(key.replace(":", "_"), ""), one) for one in _listed(values))
        for test in wanted.values()
        for key, values in test.items()
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
