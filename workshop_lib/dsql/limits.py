"""The limits of Aurora DSQL that the workshop keeps to everywhere.

Source: Aurora DSQL User Guide, "Cluster quotas and database limits", as of autumn 2026.
"""

MAX_ROWS_PER_TRANSACTION = 3_000
"""Rows that one transaction may insert, update and delete together."""

CONNECTION_LIFE_S = 3_600
"""A connection is closed by the service after this long; recycle earlier."""

CONNECTIONS_PER_SECOND = 100
"""New connections that a cluster takes, in the long run."""

CONNECTION_BURST = 1_000
"""New connections that it takes at once, after a time without."""
