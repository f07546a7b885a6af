"""What a load test is asked to do: scenarios from a file, and the jobs and messages they become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.traffic import ACTIONS, MAX_STATEMENTS, Action, EventType
from workshop_lib.paths import FILES
from workshop_lib.settings import NAMESPACE

T = TypeVar("T", bound="Checked")
SCENARIOS = FILES / "data" / "scenarios"
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS_PER_TRANSACTION)]
Statements = Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS)]
WarmUp = Annotated[int, msgspec.Meta(ge=0, le=1_000)]
ThinkMs = Annotated[float, msgspec.Meta(ge=0, le=60_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3_600)]
Region = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]+$")]
RunName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
Namespace = Annotated[str, msgspec.Meta(pattern=rf"\A({NAMESPACE})?\Z")]
# Jobs or messages of a run: the ids of their rows have room for no more.
MAX_JOBS = 1 << 20
IN_FILES = {
    "workers": "num_lambdas",
    "statements": "inserts_per_iteration",
    "rows": "rows_per_batch",
}
"""What the file of an insert load test calls them."""


class Checked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Values with ranges; unknown names are refused."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            DataError: one is out of range; the text names it and says what is allowed.

        """
        try:
            msgspec.convert(msgspec.to_builtins(self), type(self))
        except msgspec.ValidationError as error:
            raise DataError(f"This load is not usable: {error}.") from None

    def changed(self, options: Mapping[str, Any]) -> Self:
        """The same with those of these values that are not None, checked; as `check`."""
        given = {name: value for name, value in options.items() if value is not None}
        found = msgspec.structs.replace(self, **given)
        found.check()
        return found


class InsertLoad(Checked, frozen=True, rename=IN_FILES):
    """Insert load: workers that each send their next INSERT when the last one is answered.

    Attributes:
        workers: how many; if there are more than the driver runs at once, they take turns.
        iterations: rounds of each worker.
        statements: INSERTs in a round.
        rows: rows of an INSERT, 1 to 3,000.
        event_type: which events to insert.
        warm_up: jobs before the measurement, one statement each, left out of the figures.
        time_limit_s: after this time a worker begins no further statement, seconds.

    """

    workers: Count = 4
    iterations: Count = 10
    statements: Count = 1
    rows: Rows = 1
    event_type: EventType = "CarCreated"
    warm_up: WarmUp = 0
    time_limit_s: Seconds = 60.0

    @property
    def planned(self) -> int:
        """Rows in all, without those of the warm-up."""
        return self.workers * self.iterations * self.statements * self.rows


class MixedScenario(Checked, frozen=True):
    """Reads and writes through a queue, sent in rounds at a fixed rate.

    Attributes:
        duration_s: how long rounds are sent, seconds.
        wait_s: from one round to the next, seconds.
        messages_per_batch: messages of each action in a round: SELECT, INSERT and SELECT2.
        statements_per_message: how often a message's statement is run.
        think_ms: pause after each statement, outside any transaction, milliseconds.
        reads_elsewhere: SELECT and SELECT2 go to the read endpoint.
        drain_s: how long after the last round to wait for the queue to empty, seconds.

    """

    duration_s: Seconds = 10.0
    wait_s: Seconds = 0.5
    messages_per_batch: Statements = 5
    statements_per_message: Statements = 5
    think_ms: ThinkMs = 0.0
    reads_elsewhere: bool = False
    drain_s: Seconds = 30.0

    @property
    def rounds(self) -> int:
        """How many rounds are sent: the first at once, the next after `wait_s`, and so on."""
        return max(1, round(self.duration_s / self.wait_s))


class InsertScenario(Checked, frozen=True):
    """The file of an insert load test.

    Attributes:
        lambda_function_name: the Lambda function that does the work; None or empty for processes on
            this machine.
        region: where that function is; None for AWS_REGION.
        scenario_1, scenario_2: individual and multi-row inserts; a file may have only one.
        warm_up_invocations: jobs before the measurement, left out of the figures.
        event_type: which events to insert.

    """

    lambda_function_name: str | None = None
    region: Region | None = None
    scenario_1: InsertLoad | None = None
    scenario_2: InsertLoad | None = None
    warm_up_invocations: WarmUp = 20
    event_type: EventType = "CarCreated"

    def loads(
        self, which: str = "both", *, count: int | None = None, **options: object
    ) -> dict[str, InsertLoad]:
        """The loads to run, by name: those of scenario "1", "2" or "both" that the file has.

        Args:
            which: of them.
            count: INSERTs a round (1), or rows an INSERT (2), instead of the file's.
            options: attributes of InsertLoad that win over the file; those that are not None.

        Raises:
            DataError: it has none of them, or a value is out of range.

        """
        own = {"event_type": self.event_type, "warm_up": self.warm_up_invocations}
        found = {}
        if self.scenario_1 and which in {"1", "both"}:
            load = self.scenario_1.changed(own)
            found["individual inserts"] = load.changed({**options, "statements": count})
        if self.scenario_2 and which in {"2", "both"}:
            load = self.scenario_2.changed(own)
            found["multi-row inserts"] = load.changed({**options, "rows": count})
        if not found:
            raise DataError("The file has no such scenario: there is nothing to run.")
        return found


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker is asked to do, by a driver or by a message of the queue, as JSON carries it.

    Attributes:
        run: its name, from which ids of rows follow.
        number: of the job in its run.
        action: EVENTS inserts into `business_events`; the others are those of a mixed load.
        statements: how many to run, each in a transaction of its own; 0: connect, and answer.
        rows: rows of each of them.
        event_type: which events.
        warm_up: the ids of its rows say so.
        target: the endpoint for writes, or the one for reads.
        think_ms: pause after each statement, milliseconds.
        time_limit_s: after this time no further statement is begun.
        namespace: whose tables and metrics; empty for the worker's own. A function serves many.

    """

    run: RunName
    number: Annotated[int, msgspec.Meta(ge=0, lt=MAX_JOBS)]
    action: Action
    statements: Annotated[int, msgspec.Meta(ge=0)] = 1
    rows: Rows = 1
    event_type: EventType = "CarCreated"
    warm_up: bool = False
    target: Literal["writer", "reader"] = "writer"
    think_ms: ThinkMs = 0.0
    time_limit_s: Seconds = 3_600.0
    namespace: Namespace = ""

    def __post_init__(self) -> None:
        if self.action != "EVENTS" and self.planned > MAX_STATEMENTS:
            raise ValueError(f"more than {MAX_STATEMENTS:,} statements")

    @property
    def planned(self) -> int:
        """Rows of all statements; a statement that reads counts as one."""
        return self.statements * self.rows

    @property
    def place(self) -> str:
        """Where its rows are: what their ids begin with."""
        return f"{self.run}/{'warm-up-' if self.warm_up else ''}{self.number:05d}"


def insert_jobs(
    load: InsertLoad, run: str, namespace: str = "", *, warm_up: bool = False
) -> list[Job]:
    """The jobs of an insert load, or of its warm-up: a statement each."""
    return [
        Job(
            run=run,
            number=number,
            action="EVENTS",
            statements=1 if warm_up else load.iterations * load.statements,
            rows=load.rows,
            event_type=load.event_type,
            warm_up=warm_up,
            time_limit_s=load.time_limit_s,
            namespace=namespace,
        )
        for number in range(load.warm_up if warm_up else load.workers)
    ]


def mixed_jobs(scenario: MixedScenario, run: str, namespace: str = "") -> list[list[Job]]:
    """The messages of each round of a mixed load.

    Raises:
        DataError: there would be more than have ids.

    """
    actions = [action for action in ACTIONS for _ in range(scenario.messages_per_batch)]
    if scenario.rounds * len(actions) > MAX_JOBS:
        raise DataError(
            f"This load would send {scenario.rounds * len(actions):,} messages; {MAX_JOBS:,} is "
            "the most. Make duration_s or messages_per_batch smaller, or wait_s larger."
        )
    return [
        [
            Job(
                run=run,
                number=number,
                action=action,
                statements=scenario.statements_per_message,
                target="reader" if scenario.reads_elsewhere and action != "INSERT" else "writer",
                think_ms=scenario.think_ms,
                namespace=namespace,
            )
            for number, action in enumerate(actions, start=first)
        ]
        for first in range(0, scenario.rounds * len(actions), len(actions))
    ]


def read_scenario(path: str | Path, kind: type[T]) -> T:
    """A scenario from a JSON file, which may go by its name in data/scenarios/.

    Args:
        path: the file, or the name of one of the workshop's.
        kind: InsertScenario or MixedScenario.

    Raises:
        DataError: the file cannot be read, or a name or value in it is not usable.

    """
    known = SCENARIOS / f"{str(path).removesuffix('.json')}.json"
    file = known if known.exists() and not Path(path).exists() else Path(path)
    try:
        return msgspec.json.decode(file.read_text(encoding="utf-8-sig"), type=kind)
    except FileNotFoundError:
        names = ", ".join(sorted(known.stem for known in SCENARIOS.glob("*.json")))
        raise DataError(
            f"There is no scenario {path}: no such file, and the workshop's own are {names}."
        ) from None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise DataError(f"The scenario {path} is not usable: {error}.") from None
