"""What an insert load test does: a small typed scenario, from a file, with options that win."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.events import EVENT_TYPES, EventType
from workshop_lib.load.jobs import Count
from workshop_lib.settings import CHECKOUT

T = TypeVar("T")
SCENARIOS = CHECKOUT / "data" / "scenarios"
LAMBDAS_AT_ONCE = 1_000
"""Concurrent executions of an account in a Region, unless AWS has raised it."""
Workers = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS_PER_TRANSACTION)]
Which = Literal["1", "2", "both"]


class Individual(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scenario 1: one INSERT a row.

    Attributes:
        num_lambdas: workers.
        iterations: rounds of each.
        inserts_per_iteration: INSERTs in a round.

    """

    num_lambdas: Workers = 1_000
    iterations: Count = 10
    inserts_per_iteration: Count = 1


class MultiRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scenario 2: one INSERT with many rows.

    Attributes:
        num_lambdas: workers.
        iterations: INSERTs of each.
        rows_per_batch: rows in each.

    """

    num_lambdas: Workers = 1_000
    iterations: Count = 10
    rows_per_batch: Rows = 100


class InsertScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file of an insert load test. A name that it does not know is refused.

    Attributes:
        lambda_function_name, region: for workers on AWS; local ones need neither.
        scenario_1, scenario_2: individual and multi-row inserts.
        warm_up_invocations: jobs before the measurement, not counted in it.
        event_type: which events.

    """

    lambda_function_name: str = "cache-aside-load"
    region: str = "us-east-1"
    scenario_1: Individual = Individual()
    scenario_2: MultiRow = MultiRow()
    warm_up_invocations: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 20
    event_type: EventType = "CarCreated"

    def storms(self, which: Which = "both") -> dict[str, Storm]:
        """The storms to run, by name."""
        one, two = self.scenario_1, self.scenario_2
        both = {
            "1": Storm(
                workers=one.num_lambdas,
                iterations=one.iterations,
                statements=one.inserts_per_iteration,
                event_type=self.event_type,
                warm_up=self.warm_up_invocations,
            ),
            "2": Storm(
                workers=two.num_lambdas,
                iterations=two.iterations,
                rows=two.rows_per_batch,
                event_type=self.event_type,
                warm_up=self.warm_up_invocations,
            ),
        }
        names = {"1": "individual inserts", "2": "multi-row inserts"}
        return {names[key]: storm for key, storm in both.items() if which in {key, "both"}}


class Storm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measurement: so many workers, each sending statements as fast as they are answered.

    Attributes:
        workers: how many; if more than the driver takes at once, they take turns.
        iterations: rounds of each worker.
        statements: INSERTs in a round.
        rows: of each INSERT, 1 to 3,000.
        how: INSERT, or COPY.
        event_type: which events.
        warm_up: jobs before it, one statement each, not counted in the figures.
        time_limit_s: of a worker; what it has not begun by then is dropped, seconds, up to 900.

    """

    workers: Workers = 4
    iterations: Count = 10
    statements: Count = 1
    rows: Rows = 1
    how: Literal["insert", "copy"] = "insert"
    event_type: EventType = "CarCreated"
    warm_up: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    time_limit_s: Annotated[float, msgspec.Meta(gt=0, le=900)] = 60.0

    @property
    def planned(self) -> int:
        """Rows in all, without those of the warm-up."""
        return self.workers * self.iterations * self.statements * self.rows

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            DataError: one is; the text names it and says what is allowed.

        """
        convert_scenario(msgspec.to_builtins(self), Storm, "this storm")


def read_scenario(path: str | Path, **options: object) -> InsertScenario:
    """A scenario from a JSON or TOML file, with options that win over it.

    Args:
        path: the file, or the name of one in data/scenarios/.
        options: those that are not None count. function_name, region, event_type, warm_up; and for
            both scenarios: workers, iterations, count (INSERTs a round, rows a batch).

    Raises:
        DataError: the file cannot be read, or a name or value in it or an option is not usable.

    """
    scenario = convert_scenario(read_file(path), InsertScenario, str(path))
    return _with_options(scenario, {k: v for k, v in options.items() if v is not None})


def read_file(path: str | Path) -> Any:
    """What a JSON or TOML file holds; one of data/scenarios may go by its name alone.

    Raises:
        DataError: it cannot be read.

    """
    known = SCENARIOS / f"{str(path).removesuffix('.json')}.json"
    if not Path(path).exists() and known.exists():
        path = known
    try:
        text = Path(path).read_text(encoding="utf-8")
        return tomllib.loads(text) if str(path).endswith(".toml") else json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"The scenario {path} cannot be read: {error}.") from None


def _with_options(scenario: InsertScenario, options: Mapping[str, object]) -> InsertScenario:
    places = {
        "function_name": ["lambda_function_name"],
        "region": ["region"],
        "event_type": ["event_type"],
        "warm_up": ["warm_up_invocations"],
        "workers": ["scenario_1.num_lambdas", "scenario_2.num_lambdas"],
        "iterations": ["scenario_1.iterations", "scenario_2.iterations"],
        "count": ["scenario_1.inserts_per_iteration", "scenario_2.rows_per_batch"],
    }
    content = msgspec.to_builtins(scenario)
    for name, value in options.items():
        if name not in places:
            raise DataError(f"There is no option {name!r}. There are: {', '.join(places)}.")
        for place in places[name]:
            part, _, key = place.rpartition(".")
            (content[part] if part else content)[key] = value
    return convert_scenario(content, InsertScenario, "the options")


def convert_scenario(content: Any, kind: type[T], origin: str) -> T:
    """Content as a scenario of this kind.

    Args:
        content: of JSON or TOML.
        kind: of scenario.
        origin: what an error calls it.

    Raises:
        DataError: a name or a value is not usable; the text says which and what may be.

    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        said = str(error).replace("`$.", "`").replace(" - at `$`", "")
        if "enum" in said and "event_type" in said:
            said += f". There are: {', '.join(EVENT_TYPES)}"
        known = ", ".join(kind.__struct_fields__)  # type: ignore[attr-defined]
        raise DataError(f"Not usable in {origin}: {said}. It may hold: {known}.") from None
