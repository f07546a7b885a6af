"""Sign-in tokens of Aurora DSQL: what one says, and the checks that the service makes of it.

A token is a signed request, written as an address without a scheme: whoever holds it may connect
until it ends. It is made by signing alone, with no question to AWS.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from workshop_lib.errors import WorkshopError

ADMIN_ACTION = "DbConnectAdmin"
"""What a token for the user `admin` allows; for any other user it is `DbConnect`."""


@dataclass(frozen=True, slots=True)
class Token:
    """What can be read in a token, and shown: never its signature, or whose key made it.

    Attributes:
        host: the cluster that it is for.
        action: what it allows there.
        region: the Region for which it was signed.
        made: when, UTC; whole seconds.
        life_s: how long it can be used to connect, seconds.

    """

    host: str
    action: str
    region: str
    made: datetime
    life_s: int

    @property
    def ends(self) -> datetime:
        """From when on it opens no connection any more, UTC."""
        return self.made + timedelta(seconds=self.life_s)

    @property
    def seconds_left(self) -> float:
        """How long it can still be used; 0 if it has ended."""
        return max(0.0, (self.ends - datetime.now(UTC)).total_seconds())

    def _repr_html_(self) -> str:
        rows = {
            "host": self.host,
            "action": self.action,
            "Region": self.region,
            "made": f"{self.made:%H:%M:%S} UTC",
            "ends": f"{self.ends:%H:%M:%S} UTC",
            "credential, signature": "(kept secret)",
        }
        cells = (f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"


def read_token(token: str) -> Token:
    """What a token says. Whether its signature is right, only AWS can tell.

    Raises:
        WorkshopError: it is no token; the message does not repeat it.

    """
    address = urlsplit(f"https://{token}")
    fields = {name: values[0] for name, values in parse_qs(address.query).items()}
    try:
        return Token(
            host=str(address.hostname or ""),
            action=fields["Action"],
            region=fields["X-Amz-Credential"].split("/")[2],
            made=datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC),
            life_s=int(fields["X-Amz-Expires"]),
        )
    except (KeyError, IndexError, ValueError):
        raise WorkshopError(
            "This is not a sign-in token of Aurora DSQL. `ws.dsql.generate_db_connect_admin_auth_"
            "token(host, region, ExpiresIn=seconds)` makes one."
        ) from None


def find_fault(token: str, host: str) -> str:
    """Why Aurora DSQL would turn this token down, as far as that shows without its key.

    Args:
        token: the whole token.
        host: of the database that it is used for.

    Returns:
        The reason in words; empty if there is none.

    """
    found = read_token(token)
    if found.action != ADMIN_ACTION:
        return f"it allows {found.action}, and the user admin needs {ADMIN_ACTION}"
    if found.host != host:
        return f"it was made for {found.host}, and this is {host}"
    if not found.seconds_left:
        return f"it ended at {found.ends:%H:%M:%S} UTC, {found.life_s} s after it was made"
    return ""
