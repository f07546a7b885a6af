# What of the load tests a cell may use; `__init__.py` imports each name on first use.

from .cost import (
    EVENT_BYTES as EVENT_BYTES,
    FUNCTION_MB as FUNCTION_MB,
    format_cost as format_cost,
    load_cost as load_cost,
)
from .drivers import LambdaWorkers as LambdaWorkers, LocalWorkers as LocalWorkers
from .events import events as events, monthly_payment as monthly_payment
from .mixed import (
    Queue as Queue,
    run_mixed as run_mixed,
)
from .report import (
    LoadReport as LoadReport,
    compare_loads as compare_loads,
    save_reports as save_reports,
)
from .rows import count_rows as count_rows, delete_rows as delete_rows
from .run import (
    run_inserts as run_inserts,
)
from .scenario import (
    InsertLoad as InsertLoad,
    InsertScenario as InsertScenario,
    MixedScenario as MixedScenario,
    read_scenario as read_scenario,
)
from .traffic import STATEMENTS as STATEMENTS
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
    "run_inserts",
    "run_mixed",
    "save_reports",
]
