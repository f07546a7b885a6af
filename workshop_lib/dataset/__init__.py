"""The workshop's data: tables, seeded generators, and loading that can be repeated."""

from workshop_lib.dataset.load import (
    Loaded,
    Sizes,
    count_tables,
    create_schema,
    create_table,
    drop_everything,
    ensure_table,
    list_objects,
    list_tables,
    load_objects,
    load_table,
)
from workshop_lib.dataset.schema import (
    COMPLEX_QUERY,
    REPORT_QUERY,
    SIMPLE_QUERY,
    TABLES,
    TODAY,
    find_table,
)

__all__ = [
    "COMPLEX_QUERY",
    "REPORT_QUERY",
    "SIMPLE_QUERY",
    "TABLES",
    "TODAY",
    "Loaded",
    "Sizes",
    "count_tables",
    "create_schema",
    "create_table",
    "drop_everything",
    "ensure_table",
    "find_table",
    "list_objects",
    "list_tables",
    "load_objects",
    "load_table",
]
