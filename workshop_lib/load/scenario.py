"""What a load test does: typed scenarios, from a file, with options that win over it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.events import EVENT_TYPES, EventType
from workshop_lib.paths import FILES

T = TypeVar("T", bound=msgspec.Struct)
SCENARIOS = FILES / "data" / "scenarios"
MAX_STATEMENTS = 1_000
"""Of one message: more take longer than a message should."""
Workers = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS_PER_TRANSACTION)]
WarmUp = Annotated[int, msgspec.Meta(ge=0, le=1_000)]
Region = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]+$")]
Which = Literal["1", "2", "both"]
PLACES = {
    "function_name": ("lambda_function_name",),
    "warm_up": ("warm_up_invocations",),
    "workers": ("scenario_1.num_lambdas", "scenario_2.num_lambdas"),
    "iterations": ("scenario_1.iterations", "scenario_2.iterations"),
    "count": ("scenario_1.inserts_per_iteration", "scenario_2.rows_per_batch"),
}
"""Which values of the file an option replaces, where that is not the one of its name."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Values with ranges. A name that it does not know is refused."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            DataError: one is; the text names it and says what is allowed.

        """
        _convert(msgspec.to_builtins(self), type(self), "this load")


class InsertLoad(Scenario, frozen=True):
    """One measurement: so many workers, each sending statements as fast as they are answered.

    Attributes:
        workers: how many; if more than the driver takes at once, they take turns.
        iterations: rounds of each worker.
        statements: INSERTs in a round.
        rows: of each INSERT, 1 to 3,000.
        event_type: which events.
        warm_up: jobs before it, one statement each, not counted in the figures.
        time_limit_s: of a worker; what it has not begun by then is dropped, seconds, up to 900.

    """

    workers: Workers = 4
    iterations: Count = 10
    statements: Count = 1
    rows: Rows = 1
    event_type: EventType = "CarCreated"
    warm_up: WarmUp = 0
    time_limit_s: Annotated[float, msgspec.Meta(gt=0, le=900)] = 60.0

    @property
    def planned(self) -> int:
        """Rows in all, without those of the warm-up."""
        return self.workers * self.iterations * self.statements * self.rows


class MixedScenario(Scenario, frozen=True):
    """The knobs of a mixed load through a queue.

    Attributes:
        duration_s: how long rounds are sent.
        wait_s: from one round to the next.
        messages_per_batch: messages of each action in a round: SELECT, INSERT and SELECT2.
        statements_per_message: how often a message's statement is run.
        think_ms: pause after each statement, in no transaction.
        reads_elsewhere: SELECT and SELECT2 go to the endpoint for reads, where there is one.
        visibility_timeout_s: a message that is not processed by then is delivered again. On AWS at
            least six times the function's time-out. This and the next are of a queue that is made;
            the one of QUEUE_URL is used as it is.
        max_receives: after so many deliveries in vain a message goes to the dead-letter queue.
        drain_s: how long after the last round to wait for the queue to empty.

    """

    duration_s: Annotated[float, msgspec.Meta(gt=0, le=3_600)] = 10.0
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.5
    messages_per_batch: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
    statements_per_message: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS)] = 5
    think_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    reads_elsewhere: bool = False
    visibility_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=43_200)] = 30
    max_receives: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 3
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 30.0

    @property
    def rounds(self) -> int:
        """How many rounds are sent: one at once, the next after `wait_s`, and so on."""
        return max(1, round(self.duration_s / self.wait_s))


class Individual(Scenario, frozen=True):
    """Scenario 1: one INSERT a row; of each worker so many rounds of so many INSERTs."""

    num_lambdas: Workers = 1_000
    iterations: Count = 10
    inserts_per_iteration: Count = 1


class MultiRow(Scenario, frozen=True):
    """Scenario 2: one INSERT with many rows; of each worker so many INSERTs."""

    num_lambdas: Workers = 1_000
    iterations: Count = 10
    rows_per_batch: Rows = 100


class InsertScenario(Scenario, frozen=True):
    """The file of an insert load test.

    Attributes:
        lambda_function_name: the Lambda function that does the work; None or empty for processes on
            this machine.
        region: where that function is; None for AWS_REGION.
        scenario_1, scenario_2: individual and multi-row inserts; None where a file has only one.
        warm_up_invocations: jobs before the measurement, not counted in it.
        event_type: which events.

    """

    lambda_function_name: str | None = None
    region: Region | None = None
    scenario_1: Individual | None = Individual()
    scenario_2: MultiRow | None = MultiRow()
    warm_up_invocations: WarmUp = 20
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
            asked = (
                "neither scenario_1 nor scenario_2" if which == "both" else f"no scenario_{which}"
            )
            raise DataError(f"The file has {asked}: there is nothing to run.")
        return found


NESTED = {"scenario_1": Individual, "scenario_2": MultiRow}


def read_scenario(path: str | Path, **options: object) -> InsertScenario:
    """An insert scenario from a JSON or TOML file, with options that win over it.

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
    found = _read(content, InsertScenario, path, options)
    function = found.lambda_function_name
    if found.region and not function and (function is None or options.get("region")):
        raise DataError(
            f"{found.region} is where a Lambda function would be, and none is named. Name it by "
            "--function-name, or as lambda_function_name in the scenario file; or name no region "
            "(--region, or region in the file), and processes here do the work."
        )
    return found


def read_mixed(path: str | Path, **options: object) -> MixedScenario:
    """A mixed scenario from a JSON or TOML file, with options that win over it.

    Args:
        path: the file, or the name of one in data/scenarios/.
        options: attributes of MixedScenario by name; those that are not None count.

    Raises:
        DataError: the file cannot be read, or a name or value is not usable.

    """
    return _read(read_file(path), MixedScenario, path, options)


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


def _read(content: Any, kind: type[T], path: str | Path, options: dict[str, object]) -> T:
    found = _convert(content, kind, str(path))
    for name, value in options.items():
        if value is None:
            continue
        content = msgspec.to_builtins(found)
        for place in PLACES.get(name, (name,)):
            part, _, key = place.rpartition(".")
            inside = content[part] if part else content
            if inside is not None:
                inside[key] = value
        flag = re.sub(r"(_m?s|_per_.*)$", "", name).replace("_", "-")
        found = _convert(content, kind, f"--{flag}")
    return found


def _convert(content: Any, kind: type[T], origin: str) -> T:
    """Content of JSON or TOML as a scenario; `origin` is what an error names as wrong."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
    place = place.strip("`.")
    said = said.replace("`int`", "a whole number").replace("`float`", "a number")
    if "enum" in said:
        said += f". There are: {', '.join(EVENT_TYPES)}"
    if "unknown field" in said:
        said += f". It may hold: {', '.join(NESTED.get(place, kind).__struct_fields__)}"
    where = f", {place}" if place and not origin.startswith("--") else ""
    raise DataError(f"Not usable, {origin}{where}: {said}.")
