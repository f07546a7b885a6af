"""The local Aurora DSQL for programs of this machine: where it is, and tokens to sign in with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from workshop_lib.dsql import CLUSTER_NAMES, CLUSTER_REGION
from workshop_lib.services.client_config import isolate_libpq, plain_session
from workshop_lib.services.endpoints import TOKEN_LIFE_S, make_token
from workshop_lib.services.local import HOST, attach
from workshop_lib.services.state_folder import state_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from workshop_lib.settings import Settings

CONNECT_S = 5


@dataclass(frozen=True)
class LocalCluster:
    """What a client needs to know; it holds the engines until `release`.

    Attributes:
        port: on 127.0.0.1.
        certificate: the file for sslrootcert.
        signing: arguments of a boto3 client whose signatures it takes.
        release: ends the use of it.

    """

    port: int
    certificate: Path
    signing: dict[str, Any] = field(repr=False)
    release: Callable[[], None] = field(repr=False)
    host: str = CLUSTER_NAMES[0]

    @cached_property
    def _signer(self) -> Any:
        return plain_session().client("dsql", **self.signing)

    def token(self, user: str = "admin", life_s: int = TOKEN_LIFE_S) -> str:
        """A fresh token for a user.

        Args:
            user: `admin`, or a role that may log in.
            life_s: how long it opens connections, at most a week, seconds.

        """
        return make_token(self._signer, self.host, CLUSTER_REGION, user, life_s)

    def place(self, user: str = "admin") -> dict[str, Any]:
        """Arguments of libpq but for the password: nothing in them is secret."""
        where = {"host": self.host, "hostaddr": HOST, "port": self.port}
        tls = {"sslmode": "verify-full", "sslrootcert": str(self.certificate)}
        return {**where, "user": user, "dbname": "postgres", **tls}

    def arguments(self, user: str = "admin") -> dict[str, Any]:
        """Arguments of psycopg2.connect, with a fresh token."""
        limits = {"connect_timeout": CONNECT_S, "require_auth": "password"}
        return {**isolate_libpq(), **self.place(user), **limits, "password": self.token(user)}

    def url(self, life_s: int) -> str:
        """The same as an address, with a token in it."""
        options = self.place()
        user, port = options.pop("user"), options.pop("port")
        host, name = options.pop("host"), options.pop("dbname")
        login = f"{user}:{quote(self.token(life_s=life_s), safe='')}"
        return f"postgresql://{login}@{host}:{port}/{name}?{urlencode(options, quote_via=quote)}"


def open_cluster(settings: Settings) -> LocalCluster:
    """Find the local Aurora DSQL, starting it and the local PostgreSQL if need be.

    Raises:
        EngineError: it did not start, or cannot run on this machine.

    """
    held = attach(state_folder(settings.workshop_state_dir), ["postgres", "dsql"], settings)
    port = held.engines["dsql"].port
    return LocalCluster(port, held.folder.certificate, local_signing(settings), held.release)


def local_signing(settings: Settings) -> dict[str, Any]:
    """Arguments of a boto3 client whose signatures the local Aurora DSQL takes. Starts nothing."""
    known = state_folder(settings.workshop_state_dir).secrets()
    return {
        "region_name": CLUSTER_REGION,
        "aws_access_key_id": known["s3_key"],
        "aws_secret_access_key": known["s3_secret"],
    }
