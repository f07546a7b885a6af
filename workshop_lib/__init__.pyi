# The one list of what a cell may use; `__init__.py` imports each name from its module on first use.

from . import (
    costs as costs,
    load as load,
    measure as measure,
    plots as plots,
    simulate as simulate,
    traces as traces,
)
from .cache.cached import cached
from .cache.object_cache import ObjectAnswer, ObjectCache
from .cache.query_cache import Answer, QueryCache
from .cache.record_cache import RecordCache
from .cache.stats import CacheStats
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
from .dsql import read_token
from .errors import WorkshopError
from .exercises import exercise
from .measure import (
    Moment,
    Samples,
    moment,
    moments_on_schedule,
    on_schedule,
    readable,
    speed_up,
    speed_up_interval,
    time_shuffled,
)
from .objects import ObjectStore
from .prices import load_prices, price_list
from .progress import with_progress
from .published import published_figures
from .readers import ConcurrentReads, concurrent_reads
from .rows import Rows
from .sandbox import Sandbox
from .workshop import Workshop, open_workshop

__all__ = [
    "COMPLEX_QUERY",
    "REPORT_QUERY",
    "SIMPLE_QUERY",
    "TABLES",
    "TODAY",
    "Answer",
    "CacheStats",
    "ConcurrentReads",
    "Database",
    "Loaded",
    "Moment",
    "ObjectAnswer",
    "ObjectCache",
    "ObjectStore",
    "QueryCache",
    "RecordCache",
    "Rows",
    "Samples",
    "Sandbox",
    "Sizes",
    "Workshop",
    "WorkshopError",
    "cached",
    "check_deployment",
    "concurrent_reads",
    "costs",
    "create_table",
    "exercise",
    "load",
    "load_prices",
    "measure",
    "moment",
    "moments_on_schedule",
    "on_schedule",
    "open_workshop",
    "plots",
    "price_list",
    "published_figures",
    "read_token",
    "readable",
    "simulate",
    "speed_up",
    "speed_up_interval",
    "time_shuffled",
    "traces",
    "with_progress",
]
