"""What makes Aurora DSQL different from other PostgreSQL servers: its limits, its conflicts."""

from workshop_lib.dsql.conflicts import is_conflict
from workshop_lib.dsql.limits import CONNECTION_LIFE_S, MAX_ROWS_PER_TRANSACTION

__all__ = ["CONNECTION_LIFE_S", "MAX_ROWS_PER_TRANSACTION", "is_conflict"]
