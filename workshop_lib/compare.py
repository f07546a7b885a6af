"""Two runs side by side: a laptop and AWS, or before and after a change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from workshop_lib.errors import ResultError
from workshop_lib.paths import CHECKOUT
from workshop_lib.results import Value, described, ratio, read_result, shown, unreadable_result

RESULTS = CHECKOUT / "results"
MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure in both runs.

    Attributes:
        notebook, name, unit: which figure.
        first, second: its value in each run.
        ratio: second by first; None for texts, truth values, and where the first is 0.
        low, high: ends of an interval of the ratio; None unless both have one of their own.

    """

    notebook: str
    name: str
    unit: str
    first: Value
    second: Value
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> bool:
        """Whether the two differ by more than chance: their intervals do not overlap."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is not compared, and why; `name` is empty where it is a whole notebook."""

    notebook: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs have in common, and what they have not.

    Attributes:
        labels: what each run is, in words.
        pairs: the figures that can be compared, by notebook.
        refused: what cannot be.
        notes: differences that do not stand in the way, such as another machine: to know.

    """

    labels: tuple[str, str]
    pairs: list[Pair]
    refused: list[Refusal]
    notes: list[str]

    def to_frame(self) -> pd.DataFrame:
        """One row a figure."""
        rows = [
            {
                "notebook": pair.notebook[:2],
                "figure": pair.name,
                self.labels[0]: shown(pair.first),
                self.labels[1]: shown(pair.second),
                "unit": pair.unit,
                "ratio": "" if pair.ratio is None else f"{pair.ratio:.3g}",
                "95 % interval": "" if pair.low is None else f"{pair.low:.3g} – {pair.high:.3g}",
                "": "differs" if pair.apart else "",
            }
            for pair in self.pairs
        ]
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        names = Pair.__dataclass_fields__
        return {
            "runs": list(self.labels),
            "figures": [{name: getattr(pair, name) for name in names} for pair in self.pairs],
            "refused": [[one.notebook, one.name, one.why] for one in self.refused],
            "notes": self.notes,
        }

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        left = "".join(
            f"<li>{escape(f'{r.notebook} {r.name}: {r.why}')}</li>" for r in self.refused
        )
        table = self.to_frame().to_html(index=False)
        return f"<ul>{said}</ul>{table}<p>Not compared:</p><ul>{left}</ul>"


def compare_runs(first: str | Path, second: str | Path) -> Comparison:
    """Compare the figures of two runs, where they can be compared.

    They can if the same notebook passed in both, at the same size, with the same parameters and
    the same emulated distances; a figure besides, if it has the same unit in both.

    Args:
        first, second: a folder of results, the name of one below results/, or one result file.

    Raises:
        ResultError: there is no such run, it holds no results, or it is the same one twice.

    """
    places = [_find(run) for run in (first, second)]
    if places[0].resolve() == places[1].resolve():
        raise ResultError(f"{first} and {second} are the same run: there is nothing to compare.")
    runs = [_load(place) for place in places]
    labels = (_label(places[0], runs[0]), _label(places[1], runs[1]))
    if labels[0] == labels[1]:
        labels = (f"first: {labels[0]}", f"second: {labels[1]}")
    pairs: list[Pair] = []
    refused: list[Refusal] = []
    for notebook in sorted({*runs[0], *runs[1]}):
        why = _objection(runs[0].get(notebook), runs[1].get(notebook))
        if why:
            refused.append(Refusal(notebook, "", why))
            continue
        for found in _figures(notebook, runs[0][notebook], runs[1][notebook]):
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                refused.append(found)
    return Comparison(labels, pairs, refused, _notes(*runs))


def _find(run: str | Path) -> Path:
    for place in (Path(run), RESULTS / run):
        if place.exists():
            return place
    known = sorted((p.name for p in RESULTS.glob("*") if p.is_dir()), reverse=True)[:MOST_LISTED]
    listed = "".join(f"\n  {name}" for name in known) or " none yet"
    raise ResultError(f"There is no run {str(run)!r}. The newest below results/:{listed}")


def _load(place: Path) -> dict[str, dict[str, Any]]:
    """The results of a run by notebook.

    Raises:
        ResultError: there are none, or the only one cannot be read.

    """
    if place.is_file():
        result = read_result(place)
        return {str(result["notebook"]): result}
    found, unreadable = {}, None
    for file in sorted(place.glob("[0-9][0-9]_*.json")):
        try:
            found[file.stem] = read_result(file)
        except ResultError as error:
            unreadable = error
            found[file.stem] = unreadable_result(file, error)
    if unreadable and len(found) == 1:
        raise unreadable
    if not found:
        raise ResultError(f"{place} holds no results of notebooks.")
    return found


def _label(place: Path, run: Mapping[str, dict[str, Any]]) -> str:
    """The run's name, and which databases it used."""
    services = {
        result["services"]["database"]["label"]
        for result in run.values()
        if "database" in result["services"]
    }
    name = place.resolve().name if place.is_dir() else place.parent.resolve().name
    return f"{name} ({', '.join(sorted(services))})" if services else name


def _objection(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """Why a notebook's two results cannot be compared; empty if they can."""
    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'} run"
    if not (one["ok"] and other["ok"]):
        return f"failed in the {'second' if one['ok'] else 'first'} run"
    if one["size"] != other["size"]:
        return f"of size {one['size']} in the first and {other['size']} in the second"
    ours, theirs = one["parameters"], other["parameters"]
    differ = [n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n)]
    if differ:
        said = ", ".join(f"{n} {ours.get(n)} and {theirs.get(n)}" for n in differ)
        return f"with other parameters: {said}"
    if one["distances"] != other["distances"]:
        near, far = (
            "; ".join(described(d) for d in result["distances"]) or "none"
            for result in (one, other)
        )
        return f"with other emulated distances: {near} in the first, {far} in the second"
    return ""


def _figures(notebook: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Pair | Refusal]:
    ours, theirs = one["measurements"], other["measurements"]
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            side = "second" if name not in ours else "first"
            yield Refusal(notebook, name, f"only in the {side} run")
        elif ours[name]["unit"] != theirs[name]["unit"]:
            units = f"{ours[name]['unit']!r} and {theirs[name]['unit']!r}"
            yield Refusal(notebook, name, f"in other units: {units}")
        else:
            yield _pair(notebook, name, ours[name], theirs[name])


def _pair(notebook: str, name: str, one: dict[str, Any], other: dict[str, Any]) -> Pair:
    both, found = (one["value"], other["value"]), ratio(other, one)
    if found is None:
        return Pair(notebook, name, one["unit"], *both)
    return Pair(notebook, name, one["unit"], *both, found["value"], found["low"], found["high"])


def _notes(first: Mapping[str, dict[str, Any]], second: Mapping[str, dict[str, Any]]) -> list[str]:
    """What differs between the two runs without standing in the way."""
    found: dict[str, None] = {}
    for notebook in first.keys() & second.keys():
        one, other = first[notebook], second[notebook]
        for kind in sorted(one["services"].keys() & other["services"].keys()):
            ours, theirs = (_service(result["services"][kind]) for result in (one, other))
            if ours != theirs:
                found[f"{kind}: {ours} in the first run, {theirs} in the second"] = None
        ours, theirs = (result["workers"] for result in (one, other))
        if ours != theirs:
            found[f"notebooks at a time: {ours} in the first run, {theirs} in the second"] = None
        for what in ("machine", "versions"):
            ours, theirs = one.get(what, {}), other.get(what, {})
            differ = [n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n)]
            for n in differ:
                found[f"{n}: {ours.get(n)} in the first run, {theirs.get(n)} in the second"] = None
    return list(found)


def _service(service: Mapping[str, Any]) -> str:
    emulated = ", emulated" if service["emulated"] else ""
    return f"{service['label']} {service['version']}".strip() + emulated
