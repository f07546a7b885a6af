"""Aurora DSQL as a client meets it: the workshop's own front, as a cluster of this AWS.

It accepts tokens by the identities' policies and roles, and knows the few statements that only a
cluster on AWS does.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection
from contextlib import closing
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg2
from aws import Account
from serving import InThread

from workshop_lib.dsql import front
from workshop_lib.dsql.tokens import objection

IAM_GRANT = re.compile(r"""\s*AWS IAM GRANT "?(\w+)"? TO '([^']+)'\s*;?\s*""", re.IGNORECASE)
MAPPINGS = "sys.iam_pg_role_mappings"
SCHEMAS = """
SELECT count(*) FROM pg_namespace
 WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'dsql_rules', 'sys')
"""
MAX_SCHEMAS = 10


class Server(InThread):
    """A cluster's endpoint, running.

    Args:
        account: who may sign in.
        engine: arguments of psycopg2 for the local PostgreSQL, as its admin.
        owner: the password of its superuser.
        tls: the certificate that clients are shown.
        hosts: the cluster's names.
        region: its Region.

    Attributes:
        asleep: how many more connections are refused because the cluster is waking up.
        mappings: database users who may sign in besides admin, each with the ARN of an IAM role.

    """

    def __init__(
        self,
        account: Account,
        engine: dict[str, Any],
        owner: str,
        tls: ssl.SSLContext,
        hosts: Collection[str],
        region: str,
    ) -> None:
        self.account, self.engine, self.hosts, self.region = account, engine, hosts, region
        self.asleep = 0
        self.mappings: set[tuple[str, str]] = set()
        passwords = {"admin": engine["password"], "owner": owner}
        self.cluster = front.Cluster(
            server=lambda: (engine["host"], engine["port"]),
            password=passwords.__getitem__,
            objection=self._objection,
            tls=tls,
            max_schemas=MAX_SCHEMAS + self._count_schemas(),  # those of the local server's others
            rewrite=self.rewrite,
        )
        super().__init__(self.cluster.serve)

    def _objection(self, user: str, token: str) -> str:
        if self.asleep:
            self.asleep -= 1
            return "waking up cluster"
        known = {one.key: one for one in self.account.identities.values()}
        keys = {key: one.secret for key, one in known.items()}
        place = {"hosts": self.hosts, "region": self.region}
        if found := objection(token, user=user, keys=keys, **place):
            return found
        address = urlsplit(f"https://{token}")
        identity = known[dict(parse_qsl(address.query))["X-Amz-Credential"].split("/")[0]]
        cluster = str(address.hostname).split(".", 1)[0]
        action = "DbConnectAdmin" if user == "admin" else "DbConnect"
        may = identity.may(f"dsql:{action}", f"dsql:{self.region}:cluster/{cluster}")
        mapped = user == "admin" or (user, identity.role) in self.mappings
        return "" if may and mapped else "access denied"

    def rewrite(self, statement: str) -> str:
        """What the front is to do for a statement that only a cluster on AWS knows."""
        if granted := IAM_GRANT.fullmatch(statement):
            self.mappings.add(granted.groups())
            return "SELECT"
        rows = "".join(f" UNION SELECT '{user}', '{role}'" for user, role in self.mappings)
        return statement.replace(MAPPINGS, f"(SELECT NULL pg_role_name, NULL arn{rows}) mappings")

    def _count_schemas(self) -> int:
        with closing(psycopg2.connect(**self.engine)) as connection, connection.cursor() as cursor:
            cursor.execute(SCHEMAS)
            (count,) = cursor.fetchone()
            return int(count)
