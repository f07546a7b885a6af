"""The tables of the workshop: their statements as Aurora DSQL accepts them, one DDL at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from workshop_lib.errors import DataError

TODAY = date(2026, 6, 30)
"""The day on which the generated data ends, so that "the last 30 days" never runs empty."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: unqualified.
        key: its primary key column, a number that counts from 1 in generated tables.
        columns: all columns, in order.
        ddl: the CREATE TABLE statement.

    """

    name: str
    key: str
    columns: tuple[str, ...]
    ddl: str


PLANET = Table(
    "planet",
    "id",
    ("id", "name"),
    """
    CREATE TABLE IF NOT EXISTS planet (
        id   INTEGER PRIMARY KEY,
        name VARCHAR(30) NOT NULL
    )
    """,
)

USERS1 = Table(
    "users1",
    "id",
    ("id", "name", "email", "age", "department", "salary", "hire_date", "is_active"),
    """
    CREATE TABLE IF NOT EXISTS users1 (
        id         INTEGER PRIMARY KEY,
        name       VARCHAR(100) NOT NULL,
        email      VARCHAR(150) NOT NULL UNIQUE,
        age        INTEGER,
        department VARCHAR(50),
        salary     DECIMAL(10,2),
        hire_date  DATE,
        is_active  BOOLEAN NOT NULL
    )
    """,
)

USERS = Table(
    "users",
    "user_id",
    ("user_id", "name", "email", "department", "role", "last_login"),
    """
    CREATE TABLE IF NOT EXISTS users (
        user_id    INTEGER PRIMARY KEY,
        name       VARCHAR(100) NOT NULL,
        email      VARCHAR(150) NOT NULL,
        department VARCHAR(50) NOT NULL,
        role       VARCHAR(50) NOT NULL,
        last_login TIMESTAMPTZ
    )
    """,
)

# The key begins with the user: one user's orders lie together, and no second index is needed to
# find them. On DSQL, where a table is stored in key order, that is one short range read.
ORDERS = Table(
    "orders",
    "order_id",
    ("order_id", "user_id", "order_date", "order_amount", "order_type"),
    """
    CREATE TABLE IF NOT EXISTS orders (
        order_id     BIGINT NOT NULL,
        user_id      INTEGER NOT NULL,
        order_date   DATE NOT NULL,
        order_amount DECIMAL(10,2) NOT NULL,
        order_type   VARCHAR(20) NOT NULL,
        PRIMARY KEY (user_id, order_id)
    )
    """,
)

TYPE = Table(
    "type",
    "id",
    ("id", "name"),
    """
    CREATE TABLE IF NOT EXISTS type (
        id   INTEGER PRIMARY KEY,
        name VARCHAR(30) NOT NULL
    )
    """,
)

TRANSACTIONS = Table(
    "transactions",
    "id",
    ("id", "type", "date", "quantity", "price"),
    """
    CREATE TABLE IF NOT EXISTS transactions (
        id       BIGINT PRIMARY KEY,
        type     INTEGER NOT NULL,
        date     DATE NOT NULL,
        quantity INTEGER NOT NULL,
        price    DECIMAL(10,2) NOT NULL
    )
    """,
)

# The ids of a run lie together, so that its rows are found and deleted by one range of keys. Each
# of its workers has a range of its own within: on DSQL, writers at one end of one range get hot.
BUSINESS_EVENTS = Table(
    "business_events",
    "id",
    ("id", "event_name", "event_type", "created_date", "saved_date", "event_data"),
    """
    CREATE TABLE IF NOT EXISTS business_events (
        id           VARCHAR(100) PRIMARY KEY,
        event_name   VARCHAR(60) NOT NULL,
        event_type   VARCHAR(60) NOT NULL,
        created_date TIMESTAMPTZ NOT NULL,
        saved_date   TIMESTAMPTZ NOT NULL,
        event_data   JSONB NOT NULL
    )
    """,
)

LOADED = Table(
    "workshop_loaded",
    "table_name",
    ("table_name", "recipe", "row_count", "complete"),
    """
    CREATE TABLE IF NOT EXISTS workshop_loaded (
        table_name VARCHAR(60) PRIMARY KEY,
        recipe     VARCHAR(200) NOT NULL,
        row_count  BIGINT NOT NULL,
        complete   BOOLEAN NOT NULL
    )
    """,
)
"""What has been loaded, from which recipe, and whether to the end."""

TABLES = {
    table.name: table
    for table in (PLANET, USERS1, USERS, ORDERS, TYPE, TRANSACTIONS, BUSINESS_EVENTS, LOADED)
}

MADE_IN_NOTEBOOKS = frozenset({"readings", "counters", "on_call", "migrated"})
"""Tables that a notebook itself makes and fills, to show how: notebooks 08 and 09."""

SIMPLE_QUERY = "SELECT * FROM users1"

COMPLEX_QUERY = """
SELECT u.user_id, u.name, u.department,
       count(DISTINCT o.order_date)   AS active_days,
       count(*)                       AS recent_orders,
       sum(o.order_amount)            AS recent_spending,
       round(avg(o.order_amount), 2)  AS avg_order_size,
       count(DISTINCT o.order_type)   AS order_types
  FROM users u
  JOIN orders o ON o.user_id = u.user_id
 WHERE u.user_id = %(user_id)s
   AND o.order_date > %(today)s::date - 30
 GROUP BY u.user_id, u.name, u.department
"""
"""One user's last 30 days of orders, joined and aggregated. Parameters: user_id, today."""

REPORT_QUERY = """
SELECT u.department, o.order_type,
       count(*)            AS orders,
       sum(o.order_amount) AS spending,
       max(o.order_date)   AS latest
  FROM users u
  JOIN orders o ON o.user_id = u.user_id
 WHERE o.order_date > %(today)s::date - 30
 GROUP BY u.department, o.order_type
 ORDER BY u.department, o.order_type
"""
"""The whole company's last 30 days, for a dashboard. Parameter: today."""


def find_table(name: str) -> Table:
    """The table of this name.

    Raises:
        DataError: the workshop has no such table.

    """
    try:
        return TABLES[name]
    except KeyError:
        known = ", ".join(TABLES)
        raise DataError(f"There is no table {name!r} in the workshop. It has: {known}.") from None
