# The one list of what a cell may use; `__init__.py` imports each name from its room on first use.

from . import measure as measure, plots as plots
from .cache.query_cache import Answer, CacheStats, EntryInfo, QueryCache
from .checks import check_deployment
from .database import Database
from .dataset import (
    COMPLEX_QUERY,
    REPORT_QUERY,
    SIMPLE_QUERY,
    TABLES,
    TODAY,
    Loaded,
    Sizes,
    create_table,
)
from .errors import WorkshopError
from .measure import Samples, readable, speed_up, speed_up_interval, time_shuffled
from .rows import Rows
from .settings import load_settings
from .workshop import Workshop, open_workshop

__all__ = [
    "COMPLEX_QUERY",
    "REPORT_QUERY",
    "SIMPLE_QUERY",
    "TABLES",
    "TODAY",
    "Answer",
    "CacheStats",
    "Database",
    "EntryInfo",
    "Loaded",
    "QueryCache",
    "Rows",
    "Samples",
    "Sizes",
    "Workshop",
    "WorkshopError",
    "check_deployment",
    "create_table",
    "load_settings",
    "measure",
    "open_workshop",
    "plots",
    "readable",
    "speed_up",
    "speed_up_interval",
    "time_shuffled",
]
