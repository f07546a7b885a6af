"""Installing DSQL's rules in a PostgreSQL server whose superuser one is, and removing them."""

from __future__ import annotations

from pathlib import Path

from psycopg2.extensions import connection as Connection

RULES = Path(__file__).with_name("rules.sql")


def install_rules(connection: Connection) -> None:
    """Install the rules, or bring them up to date; they hold where they are switched on.

    Args:
        connection: a superuser's, in autocommit mode.

    """
    with connection.cursor() as cursor:
        cursor.execute(RULES.read_text())


def remove_rules(connection: Connection) -> None:
    """Take the rules away, with the triggers on all tables and what `sys` holds.

    Args:
        connection: a superuser's, in autocommit mode.

    """
    with connection.cursor() as cursor:
        for name in ("dsql_rules_before", "dsql_rules_after"):
            cursor.execute(f"DROP EVENT TRIGGER IF EXISTS {name}")
        cursor.execute("DROP SCHEMA IF EXISTS dsql_rules CASCADE")
        cursor.execute("DROP TABLE IF EXISTS sys.jobs")
        cursor.execute("DROP PROCEDURE IF EXISTS sys.wait_for_job(text)")
        cursor.execute("DROP SCHEMA IF EXISTS sys")
