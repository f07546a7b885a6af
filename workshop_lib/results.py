"""What a notebook measured, in one JSON file: read by summaries, reports, comparisons and tests."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from workshop_lib.errors import ResultError
from workshop_lib.paths import replace_file

if TYPE_CHECKING:
    from workshop_lib.services import Endpoint

INTERACTIVE = "interactive"
"""The size of what a person runs: whatever the parameters are, at first those of "full"."""
PACKAGES = ("psycopg2-binary", "redis", "boto3", "msgspec", "pandas", "matplotlib", "papermill")
SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
Value = int | float | str | bool
_version = cache(version)  # it reads files


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure.

    Attributes:
        value: a finite number, a text or a truth value.
        unit: "s", "µs", "rows", …; "" for a pure number.
        n: how many samples stand behind it.
        low, high: the ends of its 95 % interval, where it has one.

    Raises:
        ResultError: a value that is not a finite number, a text or a truth value.

    """

    value: Value
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        value: object = self.value  # a notebook may pass anything
        if not isinstance(value, Value):
            raise ResultError(
                f"{value!r} is neither a number, a text nor a truth value (float(x) helps)."
            )
        for number in (value, self.low, self.high):
            # An integer can be too large to calculate with.
            if isinstance(number, int | float) and not abs(number) <= sys.float_info.max:
                raise ResultError(
                    "A figure is infinite, above 1e308, or no number: only finite ones can be kept."
                )

    @property
    def number(self) -> float:
        """The value to calculate with.

        Raises:
            TypeError: it is a text or a truth value.

        """
        if isinstance(self.value, str | bool):
            raise TypeError(f"{self.value!r} is not a number")
        return float(self.value)

    @property
    def interval(self) -> str:
        """Its interval as a person reads it, the unit once if it is the same; or empty.

        >>> Measurement(1, "s", 9, 0.9, 0.95).interval, Measurement(1, "s", 9, 0.95, 1.1).interval
        ('900 to 950 ms', '950 ms to 1.1 s')
        """
        if self.low is None or self.high is None:
            return ""
        first, last = (str(Measurement(end, self.unit)) for end in (self.low, self.high))
        number, _, name = first.partition(" ")
        if first == last:
            return last
        return f"{number} to {last}" if last.endswith(f" {name}") else f"{first} to {last}"

    def __str__(self) -> str:
        """The value with its unit; a duration in the unit that a person would choose.

        >>> str(Measurement(4854.6, "µs")), str(Measurement(2500, "rows"))
        ('4.85 ms', '2,500 rows')
        >>> [str(Measurement(1, unit)) for unit in ("queries", "rows", "rows/s", "times")]
        ['1 query', '1 row', '1 rows/s', '1 times']
        """
        value, unit = self.value, self.unit
        if unit in SECONDS and not isinstance(value, str | bool):
            seconds = value * SECONDS[unit]
            best = next((u for u, size in SECONDS.items() if abs(seconds) >= size), "µs")
            return f"{format_value(value if best == unit else seconds / SECONDS[best])} {best}"
        if value == 1 and unit != "times" and "/" not in unit:
            unit = re.sub("ies$", "y", unit).removesuffix("s")
        return f"{format_value(value)} {unit}".strip()

    def __truediv__(self, other: Measurement) -> Measurement:
        """One figure by another of the same unit: "times".

        Its interval sets the ends of both intervals against each other: wider than need be, never
        narrower. It has one if both have one above 0.

        Raises:
            TypeError: a text, a truth value, or another unit.
            ZeroDivisionError: a divisor of 0.
            ResultError: a quotient that is too large.

        """
        if self.unit != other.unit:
            raise TypeError(f"{self.unit!r} cannot be divided by {other.unit!r}")
        low = high = None
        if self.low and other.low and self.high and other.high and min(self.low, other.low) > 0:
            low, high = self.low / other.high, self.high / other.low
        return Measurement(self.number / other.number, "times", min(self.n, other.n), low, high)


@dataclass(frozen=True, slots=True)
class CellError:
    """Where and why a notebook stopped.

    Attributes:
        cell: its number among all cells, from 1; 0 if no cell was reached.
        source: the cell's code.
        error: the exception's name and text.

    """

    cell: int
    source: str
    error: str


@dataclass(slots=True)
class Result:
    """One notebook's result: what it recorded, and what the run that executed it knows.

    Attributes:
        notebook: its name, for example "02_cache_a_query".
        namespace: whose tables and keys it used.
        services: label, version and kind of each service.
        started: when, with a time zone; None if no file says it.
        parameters: the notebook's parameters by name.
        size: "quick", "full", or "interactive".
        latencies: the emulated round-trip times that were in force, by service in
            milliseconds; each distinct setting once.
        measurements: by name.
        title: the notebook's heading.
        ok: whether it ran to its end.
        interrupted: the run was ended, by Ctrl-C for example, before this notebook was.
        seconds: how long that took.
        workers: how many notebooks ran at the same time.
        error: where it stopped.
        left_undone: why its tables, keys and objects were not deleted, or it has no page.
        machine, versions: on what, and with which packages.

    """

    notebook: str
    namespace: str = ""
    services: dict[str, dict[str, str | bool | None]] = field(default_factory=dict)
    started: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    size: str = INTERACTIVE
    latencies: list[dict[str, float]] = field(default_factory=list)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    title: str = ""
    ok: bool = True
    interrupted: bool = False
    seconds: float = 0.0
    workers: int = 1
    error: CellError | None = None
    left_undone: list[str] = field(default_factory=list)
    machine: dict[str, str | int | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def note_latency(self, seconds: Mapping[str, float]) -> None:
        """Keep that these round-trip times, by service, were in force; once each, in order."""
        setting = {f"{service}_ms": round(s * 1e3, 6) for service, s in seconds.items()}
        if any(setting.values()) and setting not in self.latencies:
            self.latencies.append(setting)

    @property
    def emulated(self) -> str:
        """The emulated latencies as a person reads them; empty if there were none."""
        return "; ".join(filter(None, map(format_latency, self.latencies)))

    def to_json(self) -> Any:
        """The whole result, as JSON takes it."""
        return msgspec.to_builtins(self)


def new_result(notebook: str, namespace: str = "") -> Result:
    """The result of a notebook that starts now, on this machine; nothing is recorded yet."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    started = datetime.now(UTC).replace(microsecond=0)
    versions = {name: _version(name) for name in PACKAGES}
    return Result(notebook, namespace, started=started, machine=machine, versions=versions)


def format_value(value: Value) -> str:
    """A recorded value as a person reads it.

    >>> format_value(70649.86), format_value(0.123456), format_value(True), format_value(2500)
    ('70,650', '0.123', 'yes', '2,500')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def format_latency(latency: Mapping[str, float]) -> str:
    """A latency as kept in a result, as a person reads it; empty if there is none.

    >>> format_latency({"database_ms": 5.0, "cache_ms": 0.0, "store_ms": 0.5})
    'database 5 ms, store 0.5 ms'
    """
    return ", ".join(f"{name.removesuffix('_ms')} {ms:g} ms" for name, ms in latency.items() if ms)


def ready_folder(folder: Path) -> Path:
    """A folder for files, made, and tried: what is measured for an hour can then be kept.

    Raises:
        ResultError: it cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResultError(
            f"The folder {folder} cannot be written: {error}. Choose another with --out."
        ) from None
    return folder.resolve()


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that a reader never meets half of it.

    Raises:
        ResultError: the place cannot be written.

    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step; its folder is made.

    Raises:
        ResultError: the place cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise ResultError(
            f"{path} cannot be written: {error}. Free the disk or choose another folder."
        ) from None


def read_result(path: Path) -> Result:
    """One result file.

    Raises:
        ResultError: it is missing or damaged; the text says where.

    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not a result: {error}.") from None


def read_run(folder: Path) -> dict[str, Result]:
    """The results of a run by notebook; a file that cannot be read is that of a failed notebook."""
    found = {}
    for file in sorted(folder.glob("[0-9][0-9]_*.json")):
        try:
            found[file.stem] = read_result(file)
        except ResultError as error:
            why = CellError(0, "", str(error))
            found[file.stem] = Result(file.stem, size="unknown", ok=False, error=why)
    return found


def describe_service(endpoint: Endpoint, region: str | None = None) -> dict[str, Any]:
    """One service as a result keeps it: never an address's credentials."""
    kinds = {kind: getattr(endpoint, kind) for kind in ("label", "embedded", "emulated", "aws")}
    return {**kinds, "version": "", "region": region}
