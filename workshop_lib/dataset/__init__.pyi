# What other modules use of this one; `__init__.py` imports each name on first use.

from .load import (
    Loaded as Loaded,
    Sizes as Sizes,
    count_tables as count_tables,
    create_table as create_table,
    drop_everything as drop_everything,
    ensure_objects as ensure_objects,
    ensure_table as ensure_table,
    list_objects as list_objects,
    list_tables as list_tables,
    load_objects as load_objects,
    load_table as load_table,
)
from .schema import (
    COMPLEX_QUERY as COMPLEX_QUERY,
    REPORT_QUERY as REPORT_QUERY,
    SIMPLE_QUERY as SIMPLE_QUERY,
    TABLES as TABLES,
    TODAY as TODAY,
    find_table as find_table,
)
