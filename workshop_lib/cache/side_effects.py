"""PostgreSQL's functions that do more than answer, also in a read-only transaction, by name."""

import re

SIDE_EFFECTS = re.compile(
    r"\b("
    r"nextval|setval|set_config|setseed|txid_current|pg_current_xact_id|pg_export_snapshot"
    r"|pg_notify|pg_(try_)?advisory_\w+|pg_(cancel|terminate)_backend"
    r"|pg_logical_emit_message|pg_logical_slot_get_\w+|pg_replication_\w+|pg_wal_replay_\w+"
    r"|pg_(create|drop|copy|backup|log|import)_\w+|pg_(reload_conf|rotate_logfile|switch_wal|promote)"
    r"|pg_stat_(\w+_)?reset\w*|pg_stat_(clear_snapshot|force_next_flush)|pg_prewarm"
    r"|lo_(creat|create|export|from_bytea|import|open|put|truncate|truncate64|unlink)|lowrite"
    r"|dblink_(exec|send_query)"
    r")\b"
)
"""Finds their names in a statement in small letters; to ignore case would take four times as long.

Also in a literal, where they do nothing. Waiting, by `pg_sleep`, is not among them.
"""
