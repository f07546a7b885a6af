"""The address of a cache, VALKEY_URL, as redis.Redis wants it; or a sentence why not."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError

from workshop_lib.errors import SettingsError

ESCAPES = "write special characters of a password as %XX, for example @ as %40."
IGNORED = frozenset(
    {"decode_responses", "encoding", "encoding_errors", "legacy_responses", "protocol"}
    | {"retry_on_timeout"}
)
"""Options of redis-py that change what its client returns, or how long it waits: ours stand."""

_Seconds = Annotated[float, Field(gt=0, le=600)]
_Text = Annotated[str, Field(min_length=1)]


class _Options(BaseModel):
    """What may follow the ? of an address: redis-py's names, as far as they make sense here."""

    model_config = ConfigDict(extra="forbid")

    username: _Text | None = None
    password: _Text | None = None
    client_name: _Text | None = None
    db: Annotated[int, Field(ge=0)] | None = None
    socket_timeout: _Seconds | None = None
    socket_connect_timeout: _Seconds | None = None
    socket_keepalive: bool | None = None
    health_check_interval: Annotated[int, Field(ge=0)] | None = None
    max_connections: Annotated[int, Field(ge=1)] | None = None
    ssl_cert_reqs: Literal["none", "optional", "required"] | None = None
    ssl_check_hostname: bool | None = None
    ssl_ca_certs: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    ssl_password: _Text | None = None


def parse_cache_url(url: str) -> dict[str, Any]:
    """Arguments of redis.Redis for this address; "host", "port" and "ssl" among them.

    Raises:
        SettingsError: it is malformed, or has an option that is unknown, unusable or given twice.
            The text repeats no value, since it may be a secret.

    """
    try:
        place = urlsplit(url)
        host, port = unquote(place.hostname or "localhost"), place.port or 6379
    except ValueError:
        host, port, place = "", 0, urlsplit("")
    # An @ after the host's place: what stands before it is a password that was not escaped.
    unescaped = "@" in host + place.path + place.query or place.fragment
    if place.scheme not in {"redis", "rediss"} or unescaped:
        raise SettingsError(
            "VALKEY_URL is not a cache address. Its form is redis://:password@host:port/0 "
            f"(rediss:// for TLS; Unix sockets cannot be used); {ESCAPES}"
        )
    named = {"username": place.username, "password": place.password}
    pairs = [(name, unquote(value)) for name, value in named.items() if value]
    pairs += [("db", number)] if (number := place.path.strip("/")) else []
    given: dict[str, str] = {}
    for name, value in [*pairs, *parse_qsl(place.query, keep_blank_values=True)]:
        if given.setdefault(name, value) != value:
            raise SettingsError(f"VALKEY_URL has two values for {name}; leave one of them out.")
    tls = place.scheme == "rediss"
    if not tls and any(name.startswith("ssl") for name in given):
        raise SettingsError(
            "VALKEY_URL has options for TLS, but begins with redis://, which is without; "
            "rediss:// is with TLS."
        )
    try:
        options = _Options.model_validate({n: v for n, v in given.items() if n not in IGNORED})
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name, about = str(problem["loc"][0]), f"is not usable: {problem['msg']}."
        if problem["type"] == "extra_forbidden":
            about = f"means nothing here. Known ones: {', '.join(_Options.model_fields)}."
        raise SettingsError(f"The option {name} of VALKEY_URL {about}") from None
    return {
        **options.model_dump(mode="json", exclude_unset=True),
        "host": host,
        "port": port,
        "ssl": tls,
    }
