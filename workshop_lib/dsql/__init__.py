"""What makes Aurora DSQL different from other PostgreSQL servers: its limits, rules, conflicts."""

from workshop_lib.dsql.conflicts import is_conflict
from workshop_lib.dsql.limits import CONNECTION_LIFE_S, MAX_ROWS_PER_TRANSACTION
from workshop_lib.dsql.lint import Finding, Findings, lint
from workshop_lib.dsql.rules import install_rules, remove_rules
from workshop_lib.dsql.session import RuledConnection, RuledCursor, set_rules

__all__ = [
    "CONNECTION_LIFE_S",
    "MAX_ROWS_PER_TRANSACTION",
    "Finding",
    "Findings",
    "RuledConnection",
    "RuledCursor",
    "install_rules",
    "is_conflict",
    "lint",
    "remove_rules",
    "set_rules",
]
