"""What makes Aurora DSQL different from other PostgreSQL servers: its limits, rules, conflicts."""

from workshop_lib.dsql.conflicts import comes_from_conflict, is_conflict
from workshop_lib.dsql.limits import (
    CONNECTION_BURST,
    CONNECTION_LIFE_S,
    CONNECTIONS_PER_SECOND,
    MAX_ROWS_PER_TRANSACTION,
)
from workshop_lib.dsql.lint import Finding, Findings, lint
from workshop_lib.dsql.play import Step, play
from workshop_lib.dsql.rate import Rate
from workshop_lib.dsql.rules import install_rules, remove_rules
from workshop_lib.dsql.session import RuledConnection, RuledCursor, set_rules
from workshop_lib.dsql.tokens import (
    CLUSTER_NAMES,
    CLUSTER_REGION,
    Token,
    find_fault,
    read_token,
)

__all__ = [
    "CLUSTER_NAMES",
    "CLUSTER_REGION",
    "CONNECTIONS_PER_SECOND",
    "CONNECTION_BURST",
    "CONNECTION_LIFE_S",
    "MAX_ROWS_PER_TRANSACTION",
    "Finding",
    "Findings",
    "Rate",
    "RuledConnection",
    "RuledCursor",
    "Step",
    "Token",
    "comes_from_conflict",
    "find_fault",
    "install_rules",
    "is_conflict",
    "lint",
    "play",
    "read_token",
    "remove_rules",
    "set_rules",
]
