"""The tables of the workshop (`tables.sql`), and questions that are asked of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from workshop_lib.errors import DataError

TODAY = date(2026, 6, 30)
"""The day on which the generated data ends, so that "the last 30 days" never runs empty."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: unqualified.
        columns: all columns, in order.
        ddl: the CREATE TABLE statement.

    """

    name: str
    columns: tuple[str, ...]
    ddl: str

    @property
    def number(self) -> str:
        """The column that counts from 1 in the workshop's data."""
        return self.columns[0]

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        found = re.search(r"PRIMARY KEY \((.+)\)", self.ddl)
        return tuple(found[1].split(", ")) if found else self.columns[:1]


def _read_tables() -> dict[str, Table]:
    lines = Path(__file__).with_name("tables.sql").read_text(encoding="utf-8").splitlines()
    statements = "\n".join(line for line in lines if not line.startswith("--")).split(";")
    tables = {}
    for ddl in filter(None, map(str.strip, statements)):
        first, *body = ddl.splitlines()
        name = first.split()[-2]
        columns = [line.split()[0] for line in body[:-1]]
        tables[name] = Table(name, tuple(one for one in columns if one != "PRIMARY"), ddl)
    return tables


TABLES = _read_tables()

MADE_IN_NOTEBOOKS = frozenset(
    {"parcel", "readings", "tallies", "counters", "on_call", "migrated", "bookings"}
)
"""Tables that a notebook itself makes and fills, to show how: 01, 08, more/08, 09 and 13."""

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
