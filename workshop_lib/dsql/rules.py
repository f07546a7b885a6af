"""Installing DSQL's rules in a PostgreSQL server whose superuser one is, and removing them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from psycopg2.errors import (
    DependentObjectsStillExist,
    InvalidFunctionDefinition,
    LockNotAvailable,
)
from psycopg2.extensions import connection as Connection, cursor as Cursor

from workshop_lib.errors import SettingsError

RULES = Path(__file__).with_name("rules.sql")
SAFE_PATH = "SET LOCAL search_path = pg_catalog, pg_temp;\n"
"""Begins what a superuser runs: anybody may have put functions and operators into `public`."""
LOCK_WAIT = "SET LOCAL lock_timeout = '3s';\n"
END_HOLDERS = """
SELECT pg_catalog.pg_terminate_backend(l.pid)
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_class c ON c.oid = l.relation
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname IN ('dsql_rules', 'sys') AND l.pid <> pg_catalog.pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_catalog.pg_database
                      WHERE datname = pg_catalog.current_database())
"""
"""Ends the sessions that keep locks on the rules' own tables, which nobody needs for long."""
FOREIGN = """
SELECT n.nspname, r.rolname
  FROM (SELECT oid, nspowner FROM pg_namespace
        UNION SELECT pronamespace, proowner FROM pg_proc
        UNION SELECT relnamespace, relowner FROM pg_class) owned (space, owner)
  JOIN pg_namespace n ON n.oid = space AND n.nspname IN ('dsql_rules', 'sys')
  JOIN pg_roles r ON r.oid = owner AND NOT r.rolsuper
 LIMIT 1
"""


def install_rules(connection: Connection) -> None:
    """Install the rules, or bring them up to date; they hold where they are switched on.

    Args:
        connection: a superuser's, in autocommit mode.

    Raises:
        SettingsError: a role that is no superuser owns one of the rules' two schemas or something
            in it, and so decides what would run with the rights of others. Nothing was changed.

    """
    with connection.cursor() as cursor:
        cursor.execute(SAFE_PATH + FOREIGN)
        foreign = cursor.fetchone()
        if foreign is not None:
            raise SettingsError(
                "The schema {} belongs to the role {}, or something in it does. The rules need it "
                "for themselves: rename or drop it, then install them.".format(*foreign)
            )
        try:
            _install(cursor)
        except InvalidFunctionDefinition:  # another version's: a function has other parameters
            _remove_functions(cursor)  # and nothing that holds rows, nor what views may use
            _install(cursor)


def _install(cursor: Cursor) -> None:
    install = SAFE_PATH + LOCK_WAIT + RULES.read_text()
    try:
        cursor.execute(install)
    except LockNotAvailable:
        cursor.execute(SAFE_PATH + END_HOLDERS)
        cursor.execute(install)


def remove_rules(connection: Connection) -> None:
    """Take the rules away, with the triggers on all tables and what is theirs in `sys`.

    Args:
        connection: a superuser's, in autocommit mode.

    """
    with connection.cursor() as cursor:
        _remove_functions(cursor)
        cursor.execute("DROP TABLE IF EXISTS sys.jobs CASCADE")
        cursor.execute("DROP FUNCTION IF EXISTS sys.current_session_id() CASCADE")
        with contextlib.suppress(DependentObjectsStillExist):
            cursor.execute("DROP SCHEMA IF EXISTS sys")


def _remove_functions(cursor: Cursor) -> None:
    for name in ("dsql_rules_before", "dsql_rules_after"):
        cursor.execute(f"DROP EVENT TRIGGER IF EXISTS {name}")
    cursor.execute("DROP SCHEMA IF EXISTS dsql_rules CASCADE")
    cursor.execute("DROP PROCEDURE IF EXISTS sys.wait_for_job(text) CASCADE")
