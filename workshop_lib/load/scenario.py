"""What an insert load test does: a small typed scenario, from a file, with options that win."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.events import EVENT_TYPES, EventType
from workshop_lib.load.jobs import Count
from workshop_lib.paths import CHECKOUT

T = TypeVar("T")
SCENARIOS = CHECKOUT / "data" / "scenarios"
Workers = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS_PER_TRANSACTION)]
REGION = r"^[a-z]{2}(-[a-z]+)+-[0-9]+$"
Which = Literal["1", "2", "both"]
PLACES = {
    "function_name": ("lambda_function_name",),
    "region": ("region",),
    "event_type": ("event_type",),
    "warm_up": ("warm_up_invocations",),
    "workers": ("scenario_1.num_lambdas", "scenario_2.num_lambdas"),
    "iterations": ("scenario_1.iterations", "scenario_2.iterations"),
    "count": ("scenario_1.inserts_per_iteration", "scenario_2.rows_per_batch"),
}
"""Which values of the file an option replaces."""


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
        lambda_function_name: the Lambda function that does the work; None or empty for processes on
            this machine.
        region: where that function is; None for AWS_REGION.
        scenario_1, scenario_2: individual and multi-row inserts; None where a file has only one.
        warm_up_invocations: jobs before the measurement, not counted in it.
        event_type: which events.

    """

    lambda_function_name: str | None = None
    region: Annotated[str, msgspec.Meta(pattern=REGION)] | None = None
    scenario_1: Individual | None = Individual()
    scenario_2: MultiRow | None = MultiRow()
    warm_up_invocations: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 20
    event_type: EventType = "CarCreated"

    def loads(self, which: Which = "both") -> dict[str, InsertLoad]:
        """The loads to run, by name: of those that are asked for the ones that there are.

        Raises:
            DataError: there is none.

        """
        one, two = self.scenario_1, self.scenario_2
        same: dict[str, Any] = {"event_type": self.event_type, "warm_up": self.warm_up_invocations}
        found = {}
        if one is not None and which in {"1", "both"}:
            found["individual inserts"] = InsertLoad(
                workers=one.num_lambdas,
                iterations=one.iterations,
                statements=one.inserts_per_iteration,
                **same,
            )
        if two is not None and which in {"2", "both"}:
            found["multi-row inserts"] = InsertLoad(
                workers=two.num_lambdas, iterations=two.iterations, rows=two.rows_per_batch, **same
            )
        if not found:
            asked = "scenario_1 nor scenario_2" if which == "both" else f"scenario_{which}"
            lacks = "holds neither" if which == "both" else "has no"
            raise DataError(f"The file {lacks} {asked}: there is nothing to run.")
        return found


class InsertLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
        convert_scenario(msgspec.to_builtins(self), InsertLoad, "this load")


def read_scenario(path: str | Path, **options: object) -> InsertScenario:
    """A scenario from a JSON or TOML file, with options that win over it.

    Args:
        path: the file, or the name of one in data/scenarios/.
        options: those that are not None count. function_name, region, event_type, warm_up; and for
            each scenario in the file: workers, iterations, count (INSERTs a round, rows a batch).

    Raises:
        DataError: the file cannot be read, or a name or value in it or an option is not usable.

    """
    content = read_file(path)
    if isinstance(content, dict):  # what is not in the file is not run
        content = {"scenario_1": None, "scenario_2": None, **content}
    scenario = convert_scenario(content, InsertScenario, str(path))
    given = {k: v for k, v in options.items() if v is not None}
    found = _with_options(scenario, given)
    if "region" in given and not found.lambda_function_name:
        raise DataError(
            "--region is where a Lambda function is, and none is named. Name it by "
            "--function-name, or as lambda_function_name in the scenario file; or leave --region "
            "out, and processes here do the work."
        )
    if scenario.region and not scenario.lambda_function_name and not found.lambda_function_name:
        raise DataError(
            f"{path} names a region, and no lambda_function_name that would be there. Name both, "
            "or neither."
        )
    return found


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
    content = msgspec.to_builtins(scenario)
    for name, value in options.items():
        if name not in PLACES:
            raise DataError(f"There is no option {name!r}. There are: {', '.join(PLACES)}.")
        for place in PLACES[name]:
            part, _, key = place.rpartition(".")
            inside = content[part] if part else content
            if inside is not None:
                inside[key] = value
    flags = {place: _flag(name) for name in options for place in PLACES[name]}
    return convert_scenario(content, InsertScenario, "the options", flags)


def _flag(name: str) -> str:
    """An option as it is written in a shell."""
    return f"--{name.replace('_', '-')}"


def convert_scenario(
    content: Any, kind: type[T], origin: str, flags: Mapping[str, str] = MappingProxyType({})
) -> T:
    """Content as a scenario of this kind.

    Args:
        content: of JSON or TOML.
        kind: of scenario.
        origin: what an error calls it.
        flags: the options that values come from, by the values' names: then an error names these.

    Raises:
        DataError: a name or a value is not usable; the text says which and what may be.

    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(_in_words(str(error), kind, origin, flags)) from None


def _in_words(said: str, kind: type, origin: str, flags: Mapping[str, str]) -> str:
    """What msgspec says of a value, as a sentence."""
    said, _, place = said.partition(" - at `$")
    place = place.strip("`.")
    if "enum" in said and place == "event_type":
        said += f". There are: {', '.join(EVENT_TYPES)}"
    said = said.replace("`int`", "a whole number").replace("`float`", "a number")
    if place in flags and said.startswith("Expected "):
        return f"{flags[place]} must be {said.removeprefix('Expected ')}."
    if place in flags:
        return f"{flags[place]}: {said}."
    where = f" - at `{place}`" if place else ""
    known = f" It may hold: {', '.join(_fields(kind, place))}." if "unknown field" in said else ""
    return f"Not usable in {origin}: {said}{where}.{known}"


def _fields(kind: Any, place: str) -> tuple[str, ...]:
    """The names that a struct knows; or, with a place, the struct in that field of it."""
    if place:
        found = get_type_hints(kind)[place]
        kind = next(k for k in (*get_args(found), found) if hasattr(k, "__struct_fields__"))
    return tuple(kind.__struct_fields__)
