"""What a notebook measured, in one JSON file: read by summaries, reports, comparisons and tests."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from workshop_lib.errors import ResultError

FORMAT = 1
PACKAGES = ("psycopg2-binary", "redis", "boto3", "msgspec", "pandas", "matplotlib", "papermill")
SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
Value = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure.

    Attributes:
        value: a finite number, a text or a truth value.
        unit: "s", "µs", "rows", …; "" for a pure number.
        n: how many samples stand behind it.
        low, high: the ends of its interval, where it has one.

    """

    value: Value
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None


@dataclass(slots=True)
class Result:
    """One notebook's result.

    Attributes:
        notebook: its name, for example "02_cache_a_query".
        namespace: whose tables and keys it used.
        services: label, version and kind of each service.
        started: when, UTC, ISO 8601.
        parameters: the notebook's parameters by name, where the run knows them.
        size: "quick", "full", or "interactive".
        latencies: the emulated round-trip times that were in force, by service in
            milliseconds; each distinct setting once.
        measurements: by name.

    """

    notebook: str
    namespace: str
    services: dict[str, dict[str, Any]]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    parameters: dict[str, Any] = field(default_factory=dict)
    size: str = "interactive"
    latencies: list[dict[str, float]] = field(default_factory=list)
    measurements: dict[str, Measurement] = field(default_factory=dict)

    def record(self, name: str, measurement: Measurement) -> None:
        """Keep a figure under a name, replacing an earlier one of that name.

        Raises:
            ResultError: a value that is not a finite number, a text or a truth value.

        """
        numbers = (measurement.value, measurement.low, measurement.high)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ResultError(f"{name} is {number}; only finite numbers can be recorded.")
        value: object = measurement.value  # a notebook may pass anything
        if not isinstance(value, int | float | str | bool):
            kind = type(value).__name__
            raise ResultError(
                f"{name} is a {kind}; record a number, a text or a truth value (float(x) helps)."
            )
        self.measurements[name] = measurement

    def note_latency(self, seconds: Mapping[str, float]) -> None:
        """Keep that these round-trip times, by service, were in force; once each, in order."""
        setting = {f"{service}_ms": round(s * 1e3, 6) for service, s in seconds.items()}
        if any(setting.values()) and setting not in self.latencies:
            self.latencies.append(setting)

    def to_json(self) -> dict[str, Any]:
        """The whole result, with the machine and the package versions, as JSON takes it."""
        return {
            "format": FORMAT,
            **asdict(self),
            "machine": {
                "system": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
            },
            "versions": {name: version(name) for name in PACKAGES},
        }


def shown(value: object) -> str:
    """A recorded value as a person reads it.

    >>> shown(70649.86), shown(0.123456), shown(True), shown(2500)
    ('70,650', '0.123', 'yes', '2,500')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def said(value: object, unit: str, *, bare: bool = False) -> str:
    """A recorded value with its unit; a duration in the unit that a person would choose.

    Args:
        value, unit: as recorded.
        bare: leave out units other than those of time and "times": the text around has them.

    >>> said(4854.6, "µs"), said(2500, "rows"), said(2500, "rows", bare=True), said(13.29, "×")
    ('4.85 ms', '2,500 rows', '2,500', '13.3 times')
    >>> said(1, "queries"), said(1, "rows"), said(1.5, "rows/s"), said(True, "")
    ('1 query', '1 row', '1.5 rows/s', 'yes')
    """
    if is_number(value) and unit in SECONDS:
        seconds = value * SECONDS[unit]
        best = next((u for u, size in SECONDS.items() if abs(seconds) >= size), "µs")
        return f"{shown(value if best == unit else seconds / SECONDS[best])} {best}"
    if unit in {"times", "×"}:
        return f"{shown(value)} times"
    if value == 1 and not unit.endswith("/s"):
        unit = re.sub("ies$", "y", unit).removesuffix("s")
    return shown(value) if bare else f"{shown(value)} {unit}".strip()


def said_range(low: object, high: object, unit: str) -> str:
    """Two recorded values, from and to; their unit once, if it is the same.

    >>> said_range(900, 950, "µs"), said_range(950, 1100, "µs"), said_range(2, 2, "s")
    ('900 to 950 µs', '950 µs to 1.1 ms', '2 s')
    """
    first, last = said(low, unit), said(high, unit)
    number, _, name = first.partition(" ")
    if first == last:
        return last
    return f"{number} to {last}" if last.endswith(f" {name}") else f"{first} to {last}"


def ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    """One recorded figure divided by another, as a figure.

    Its interval sets the ends of both intervals against each other: wider than need be, never
    narrower. There is none unless both have one of their own, above 0.

    Returns:
        It; None for texts, truth values, different units, a divisor of 0, and what is too large.

    """
    one, other = first["value"], second["value"]
    if not (is_number(one) and is_number(other)) or not other or first["unit"] != second["unit"]:
        return None
    low = high = None
    if all(is_number(m[end]) and m[end] > 0 for m in (first, second) for end in ("low", "high")):
        low, high = first["low"] / second["high"], first["high"] / second["low"]
    if not all(math.isfinite(number) for number in (one / other, low or 0, high or 0)):
        return None
    samples = min(first["n"], second["n"])
    return {"value": one / other, "unit": "times", "n": samples, "low": low, "high": high}


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a recorded value can be calculated with: a truth value cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def described(latency: Mapping[str, float]) -> str:
    """Latencies as kept in a result, as a person reads them; empty if there are none.

    >>> described({"database_ms": 5.0, "cache_ms": 0.0, "store_ms": 0.5})
    'database 5 ms, store 0.5 ms'
    """
    return ", ".join(f"{name.removesuffix('_ms')} {ms:g} ms" for name, ms in latency.items() if ms)


def ready_folder(folder: Path) -> Path:
    """A folder for results, made, and tried: what is measured for an hour can then be kept.

    Raises:
        ResultError: it cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResultError(
            f"The results folder {folder} cannot be written: {error}. Choose another with --out."
        ) from None
    return folder.resolve()


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that a reader never meets half of it.

    Raises:
        ResultError: the place cannot be written.

    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except OSError as error:
        raise ResultError(
            f"The result {path} cannot be written: {error}. Free the disk or choose another folder."
        ) from None


def latest_figure(
    folder: Path, notebook: str, name: str, *, first: Path | None = None
) -> tuple[Measurement, str] | None:
    """The newest measurement of this name that a notebook left in any run.

    Args:
        folder: that holds a folder for each run.
        first: a run's folder, wherever it is, that is looked into before all others.
        notebook: its name, without .ipynb.
        name: of the measurement.

    Returns:
        It, and when it was measured; None if there is none that can be read.

    """
    found = (path for path in folder.glob(f"*/{notebook}.json") if not path.parent.is_symlink())
    files = [path for path in found if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [first / f"{notebook}.json", *files] if first else files:
        with contextlib.suppress(ResultError, KeyError):
            result = read_result(path)
            return Measurement(**result["measurements"][name]), result["started"]
    return None


def read_result(path: Path) -> dict[str, Any]:
    """One result file, with all fields that a result has.

    What is missing or of another type is empty; `started` and `machine` are left out then, and so
    is a measurement without a usable value.

    Raises:
        ResultError: it is missing, damaged, or of another format.

    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not a result: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"{path} is not a result of format {FORMAT}; run the notebook again.")
    return _sound(content, path.stem)


def unreadable_result(path: Path, error: ResultError) -> dict[str, Any]:
    """What stands in a report for a result that cannot be read: a failed notebook."""
    return _sound({"ok": False, "error": str(error)}, path.stem)


def _sound(content: dict[str, Any], name: str) -> dict[str, Any]:
    error = content.get("error")
    if error is not None:
        given = error if isinstance(error, dict) else {"error": str(error)}
        texts = {key: _a(str, given, key, "") for key in ("source", "error", "traceback")}
        error = {"cell": _a(int, given, "cell", 0), **texts}
    seconds = content.get("seconds")
    sound = {
        **content,
        "notebook": _a(str, content, "notebook", name),
        "title": _a(str, content, "title", name),
        "size": _a(str, content, "size", "unknown"),
        "workers": _a(int, content, "workers", 1),
        "ok": _a(bool, content, "ok", error is None),
        "seconds": seconds if _is_finite(seconds) else 0.0,
        "error": error,
        "parameters": _a(dict, content, "parameters", {}),
        "services": {
            kind: {
                "label": _a(str, service, "label", "unknown"),
                "version": _a(str, service, "version", ""),
                "region": _a(str, service, "region", None),
                **{key: _a(bool, service, key, False) for key in ("embedded", "emulated", "aws")},
            }
            for kind, service in _a(dict, content, "services", {}).items()
            if isinstance(service, dict)
        },
        "latencies": [
            {service: ms for service, ms in latency.items() if _is_finite(ms)}
            for latency in _a(list, content, "latencies", _a(list, content, "distances", []))
            if isinstance(latency, dict)
        ],
        "measurements": {
            key: _sound_measurement(measured)
            for key, measured in _a(dict, content, "measurements", {}).items()
            if isinstance(measured, dict)
            and (isinstance(measured.get("value"), str | bool) or _is_finite(measured.get("value")))
        },
        "versions": {k: str(v) for k, v in _a(dict, content, "versions", {}).items()},
        "machine": {
            key: value if isinstance(value, int) else str(value)
            for key, value in _a(dict, content, "machine", {}).items()
        },
    }
    if not isinstance(content.get("started"), str):
        sound.pop("started", None)
    if not {"system", "python", "cpus"} <= sound["machine"].keys():
        del sound["machine"]
    return sound


def _sound_measurement(measured: dict[str, Any]) -> dict[str, Any]:
    low, high = measured.get("low"), measured.get("high")
    known = _is_finite(low) and _is_finite(high)
    return {
        "value": measured["value"],
        "unit": _a(str, measured, "unit", ""),
        "n": _a(int, measured, "n", 1),
        "low": low if known else None,
        "high": high if known else None,
    }


def _a(kind: type, content: dict[str, Any], name: str, otherwise: Any) -> Any:
    """A field that is of this type, or what to take otherwise."""
    value = content.get(name)
    return value if isinstance(value, kind) else otherwise


def _is_finite(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False
