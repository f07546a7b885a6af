"""Sign-in tokens of Aurora DSQL: what one says, and the checks that the service makes of it.

A token is a signed request, written as an address without a scheme: its holder may connect
until it ends. It is made by signing alone, with no question to AWS.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

from workshop_lib.errors import WorkshopError
from workshop_lib.html_table import html_table

ADMIN_ACTION = "DbConnectAdmin"
"""What a token for the user `admin` allows; for any other user it is `DbConnect`."""
CLUSTER_REGION = "us-east-1"
CLUSTER_NAMES = (f"local.dsql.{CLUSTER_REGION}.on.aws", "localhost")
"""What the local cluster is called: as a cluster on AWS would be, and as this machine is."""
WEEK_S = 7 * 24 * 3600
CLOCK_SKEW_S = 300
"""A token from the near future: two clocks are never quite the same."""


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
        """When it expires, UTC: from then on it opens no connection."""
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
        return html_table((), rows.items())


def read_token(token: str) -> Token:
    """What a token says. Whether its signature is right, only AWS can tell.

    Raises:
        WorkshopError: it is no token; the message does not repeat it.

    """
    try:
        address = urlsplit(f"https://{token}")
        fields = dict(parse_qsl(address.query, keep_blank_values=True))
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


def objection(
    token: str, *, user: str, hosts: Collection[str], region: str, keys: Mapping[str, str]
) -> str:
    """Why a token does not let a user into a cluster now; its signature is checked, too.

    Args:
        token: the whole token.
        user: as whom its bearer signs in.
        hosts: the cluster's names.
        region: the cluster's Region.
        keys: whose signatures count: secret access keys by access key.

    Returns:
        What the service says: no more than it must. Empty if the token is good.

    """
    try:
        said, address = read_token(token), urlsplit(f"https://{token}")
        pairs = parse_qsl(address.query, keep_blank_values=True)
        fields = dict(pairs)
        key, *scope = fields["X-Amz-Credential"].split("/")
        secret, given = keys[key], fields.pop("X-Amz-Signature")
    except (WorkshopError, KeyError):
        return "access denied"
    age_s = (datetime.now(UTC) - said.made).total_seconds()
    good = (
        # Nothing but what is signed: no other path, fragment, blanks, or parameter given twice.
        token == f"{address.netloc}/?{address.query}"
        and len(pairs) == len(fields) + 1
        and said.host in hosts
        and said.action == (ADMIN_ACTION if user == "admin" else "DbConnect")
        and scope == [f"{said.made:%Y%m%d}", region, "dsql", "aws4_request"]
        and -CLOCK_SKEW_S <= age_s < said.life_s
        and hmac.compare_digest(given.encode(), _sign(address.netloc, fields, secret).encode())
    )
    if good and said.life_s > WEEK_S:
        return "X-Amz-Expires must be less than a week (in seconds)"
    return "" if good else "access denied"


def _sign(host: str, fields: dict[str, str], secret: str) -> str:
    """Signature Version 4 of a presigned GET (IAM User Guide, "Create a signed request")."""
    query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(fields.items()))
    nothing = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{query}\nhost:{host}\n\nhost\n{nothing}"
    scope = fields["X-Amz-Credential"].split("/", 1)[1]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{fields['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key.hex()
