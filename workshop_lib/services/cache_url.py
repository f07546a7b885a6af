"""The address of a cache, VALKEY_URL, as redis.Redis wants it; or a sentence why not."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from workshop_lib.errors import SettingsError

ESCAPES = "write special characters of a password as %XX, for example @ as %40."
OPTIONS = frozenset(
    {"host", "port", "db", "username", "password", "client_name", "socket_timeout"}
    | {"socket_connect_timeout", "socket_keepalive", "health_check_interval", "max_connections"}
)
"""What an address may say: redis-py's names, as far as they make sense here."""
TLS_OPTIONS = frozenset(
    {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
    | {"ssl_password"}
)
IGNORED = frozenset(
    {"decode_responses", "encoding", "encoding_errors", "legacy_responses", "protocol"}
    | {"retry_on_timeout"}
)
"""Options of redis-py that change what its client returns, or how long it waits: ours stand."""


def parse_cache_url(url: str) -> dict[str, Any]:
    """Arguments of redis.Redis for this address; "host", "port" and "ssl" among them.

    Raises:
        SettingsError: it is malformed, or has an option that is unknown or unusable. The text
            repeats no value, since it may be a secret.

    """
    import redis  # noqa: PLC0415 -- a third of a second that local engines need not spend here

    tls = url.startswith("rediss://")
    try:
        place, given = urlsplit(url), redis.connection.parse_url(url)
        # An @ after the host's place: what stands before it is a password that was not escaped.
        unescaped = "@" in place.path + place.query or place.fragment
        if not url.startswith(("redis://", "rediss://")) or unescaped:
            raise ValueError("not the address of a server")
        int(place.path.strip("/") or 0)
    except ValueError:
        raise SettingsError(
            "VALKEY_URL is not a cache address. Its form is redis://:password@host:port/0 "
            "(rediss:// for TLS; Unix sockets cannot be used), perhaps with options and their "
            f"numbers; {ESCAPES}"
        ) from None
    known = OPTIONS | (TLS_OPTIONS if tls else set())
    options = {name: value for name, value in given.items() if name not in IGNORED}
    options.pop("connection_class", None)
    if unknown := options.keys() - known:
        raise SettingsError(
            f"The option {min(unknown)} of VALKEY_URL means nothing here. Known ones: "
            f"{', '.join(sorted(known))}{'' if tls else '; with rediss:// those of TLS, too'}."
        )
    return {"host": "localhost", "port": 6379, **options, "ssl": tls}
