# What of the load tests others use; `__init__.py` imports each name on first use.

from .drivers import LambdaWorkers as LambdaWorkers, LocalWorkers as LocalWorkers
from .report import (
    EVENT_BYTES as EVENT_BYTES,
    FUNCTION_MB as FUNCTION_MB,
    LoadReport as LoadReport,
    compare_loads as compare_loads,
    format_cost as format_cost,
    load_cost as load_cost,
    save_reports as save_reports,
)
from .rows import count_rows as count_rows, delete_rows as delete_rows, rows_of as rows_of
from .run import Queue as Queue, run_inserts as run_inserts, run_mixed as run_mixed
from .scenario import (
    InsertLoad as InsertLoad,
    InsertScenario as InsertScenario,
    MixedScenario as MixedScenario,
    read_scenario as read_scenario,
)
from .traffic import STATEMENTS as STATEMENTS, events as events, monthly_payment as monthly_payment
from .worker import (
    ClientConfig as ClientConfig,
    dimensions as dimensions,
    handler as handler,
    metrics_namespace as metrics_namespace,
)

__all__ = [
    "EVENT_BYTES",
    "FUNCTION_MB",
    "STATEMENTS",
    "ClientConfig",
    "InsertLoad",
    "InsertScenario",
    "LambdaWorkers",
    "LoadReport",
    "LocalWorkers",
    "MixedScenario",
    "Queue",
    "compare_loads",
    "count_rows",
    "delete_rows",
    "dimensions",
    "events",
    "format_cost",
    "handler",
    "load_cost",
    "metrics_namespace",
    "monthly_payment",
    "read_scenario",
    "rows_of",
    "run_inserts",
    "run_mixed",
    "save_reports",
]
