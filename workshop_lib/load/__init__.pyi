# What of the load tests a cell may use; `__init__.py` imports each name on first use.

from .bill import (
    FUNCTION_MB as FUNCTION_MB,
    format_cost as format_cost,
    insert_cost as insert_cost,
    mixed_cost as mixed_cost,
    planned_cost as planned_cost,
)
from .clients import ClientConfig as ClientConfig
from .drivers import LambdaWorkers as LambdaWorkers, LocalWorkers as LocalWorkers
from .events import events as events, monthly_payment as monthly_payment
from .inserts import (
    InsertReport as InsertReport,
    compare_loads as compare_loads,
    count_rows as count_rows,
    delete_rows as delete_rows,
    run_inserts as run_inserts,
    save_reports as save_reports,
)
from .mixed import (
    MixedReport as MixedReport,
    MixedScenario as MixedScenario,
    Queue as Queue,
    read_metrics as read_metrics,
    run_mixed as run_mixed,
)
from .poison import follow_poison_message as follow_poison_message
from .rows import (
    count_transactions as count_transactions,
    delete_transactions as delete_transactions,
)
from .scenario import (
    InsertLoad as InsertLoad,
    InsertScenario as InsertScenario,
    read_scenario as read_scenario,
)
from .streams import (
    StreamReport as StreamReport,
    run_stream as run_stream,
    saturation as saturation,
    warm_cache as warm_cache,
)
from .traffic import STATEMENTS as STATEMENTS
from .worker import handler as handler

__all__ = [
    "FUNCTION_MB",
    "STATEMENTS",
    "ClientConfig",
    "InsertLoad",
    "InsertReport",
    "InsertScenario",
    "LambdaWorkers",
    "LocalWorkers",
    "MixedReport",
    "MixedScenario",
    "Queue",
    "StreamReport",
    "compare_loads",
    "count_rows",
    "count_transactions",
    "delete_rows",
    "delete_transactions",
    "events",
    "follow_poison_message",
    "format_cost",
    "handler",
    "insert_cost",
    "mixed_cost",
    "monthly_payment",
    "planned_cost",
    "read_metrics",
    "read_scenario",
    "run_inserts",
    "run_mixed",
    "run_stream",
    "saturation",
    "save_reports",
    "warm_cache",
]
