# What of the load tests a cell may use; `__init__.py` imports each name on first use.

from .bill import (
    FUNCTION_MB as FUNCTION_MB,
    format_cost as format_cost,
    insert_cost as insert_cost,
    mixed_cost as mixed_cost,
    storm_cost as storm_cost,
)
from .drivers import LambdaWorkers as LambdaWorkers, LocalWorkers as LocalWorkers
from .events import events as events, monthly_payment as monthly_payment
from .in_vain import deliver_in_vain as deliver_in_vain
from .inserts import (
    InsertReport as InsertReport,
    compare_storms as compare_storms,
    count_rows as count_rows,
    delete_rows as delete_rows,
    run_inserts as run_inserts,
    save_reports as save_reports,
)
from .means import Equipment as Equipment
from .mixed import (
    MixedReport as MixedReport,
    MixedScenario as MixedScenario,
    Queue as Queue,
    read_metrics as read_metrics,
    run_mixed as run_mixed,
)
from .rows import (
    count_transactions as count_transactions,
    delete_transactions as delete_transactions,
)
from .scenario import (
    InsertScenario as InsertScenario,
    Storm as Storm,
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
    "Equipment",
    "InsertReport",
    "InsertScenario",
    "LambdaWorkers",
    "LocalWorkers",
    "MixedReport",
    "MixedScenario",
    "Queue",
    "Storm",
    "StreamReport",
    "compare_storms",
    "count_rows",
    "count_transactions",
    "delete_rows",
    "delete_transactions",
    "deliver_in_vain",
    "events",
    "format_cost",
    "handler",
    "insert_cost",
    "mixed_cost",
    "monthly_payment",
    "read_metrics",
    "read_scenario",
    "run_inserts",
    "run_mixed",
    "run_stream",
    "saturation",
    "save_reports",
    "storm_cost",
    "warm_cache",
]
