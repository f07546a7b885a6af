# What of the load tests a cell may use; `__init__.py` imports each name on first use.

from .drivers import LambdaWorkers as LambdaWorkers, LocalWorkers as LocalWorkers
from .events import events as events, monthly_payment as monthly_payment
from .inserts import (
    InsertReport as InsertReport,
    compare_storms as compare_storms,
    count_rows as count_rows,
    delete_rows as delete_rows,
    run_inserts as run_inserts,
    save_reports as save_reports,
)
from .means import Equipment as Equipment
from .scenario import (
    InsertScenario as InsertScenario,
    Storm as Storm,
    read_scenario as read_scenario,
)
from .worker import handler as handler

__all__ = [
    "Equipment",
    "InsertReport",
    "InsertScenario",
    "LambdaWorkers",
    "LocalWorkers",
    "Storm",
    "compare_storms",
    "count_rows",
    "delete_rows",
    "events",
    "handler",
    "monthly_payment",
    "read_scenario",
    "run_inserts",
    "save_reports",
]
