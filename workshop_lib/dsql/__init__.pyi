# What other modules use of this one; `__init__.py` imports each name on first use.

from .conflicts import comes_from_conflict as comes_from_conflict, is_conflict as is_conflict
from .interleaving import Step as Step, run_interleaved as run_interleaved
from .limits import (
    CONNECTION_BURST as CONNECTION_BURST,
    CONNECTION_LIFE_S as CONNECTION_LIFE_S,
    CONNECTIONS_PER_SECOND as CONNECTIONS_PER_SECOND,
    MAX_ROWS_PER_TRANSACTION as MAX_ROWS_PER_TRANSACTION,
    Rate as Rate,
)
from .linter import Finding as Finding, Findings as Findings, lint as lint
from .rules import install_rules as install_rules, remove_rules as remove_rules
from .tokens import (
    CLUSTER_NAMES as CLUSTER_NAMES,
    CLUSTER_REGION as CLUSTER_REGION,
    Token as Token,
    read_token as read_token,
)
