"""What a notebook records: its figures, kept in a file, and shown as its summary."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ResultError, WorkshopError
from workshop_lib.measure import FEWEST_FOR_INTERVAL, P99_SAMPLES, Samples
from workshop_lib.paths import CHECKOUT
from workshop_lib.results import Measurement, Result, Value, format_value, latest_figure, write_json
from workshop_lib.services import Endpoint, Endpoints

if TYPE_CHECKING:
    import pandas as pd


class Recording:
    """The half of a Workshop that keeps figures.

    Attributes:
        result: what has been recorded so far.

    """

    def __init__(self, result: Result, file: Path | None) -> None:
        self.result = result
        self._result_file = file or (
            CHECKOUT / "results" / "interactive" / f"{result.notebook}.json"
        )
        self._pid = os.getpid()

    @property
    def result_folder(self) -> Path:
        """Where this run's results go."""
        return self._result_file.parent

    def record(
        self,
        name: str,
        value: Value,
        unit: str = "",
        n: int = 1,
        interval: tuple[float, float] | None = None,
    ) -> None:
        """Keep a figure under a name: for the summary, the report and comparisons.

        Args:
            name: for example "hit_p50".
            value: a number, a text or a truth value.
            unit: "s", "µs", "rows", …; "" for a pure number.
            n: how many samples stand behind it.
            interval: its ends, in the same unit.

        Raises:
            WorkshopError: this process was forked since the workshop was opened.

        """
        if self._pid != os.getpid():
            raise WorkshopError(
                "This process was forked since the workshop was opened: its figures would replace "
                "the parent's. Return them to the parent, and record them there."
            )
        measured = Measurement(value, unit, n, *(interval or (None, None)))
        self.result.measurements[name] = measured
        try:
            write_json(self._result_file, self.result.to_json())
        except ResultError as error:
            # A full or read-only disk should not end a lesson: the figure is kept in memory.
            warnings.warn(str(error), stacklevel=2)

    def record_samples(self, name: str, samples: Samples) -> None:
        """Keep p50 (with its interval), p95, p99, mean, minimum and maximum of samples, in µs."""
        n = len(samples)
        low, high = (end * 1e6 for end in samples.interval(50))
        interval = (low, high) if n >= FEWEST_FOR_INTERVAL else None
        self.record(f"{name}_p50", samples.median * 1e6, "µs", n, interval)
        for q in (95, 99) if n >= P99_SAMPLES else (95,):
            self.record(f"{name}_p{q}", samples.percentile(q) * 1e6, "µs", n)
        self.record(f"{name}_mean", samples.mean * 1e6, "µs", n)
        self.record(f"{name}_min", min(samples.seconds) * 1e6, "µs", n)
        self.record(f"{name}_max", max(samples.seconds) * 1e6, "µs", n)

    def summary(self, pattern: str = "") -> pd.DataFrame:
        """What was recorded in this notebook, ready to read: one row a figure.

        Args:
            pattern: a regular expression; only figures whose name it matches are shown.

        """
        import pandas as pd  # noqa: PLC0415 -- it takes as long as all else that opening imports

        chosen = {n: m for n, m in self.result.measurements.items() if re.search(pattern, n)}
        return pd.DataFrame(
            [
                {
                    "value": format_value(m.value),
                    "unit": m.unit,
                    "95 % interval": ""
                    if m.low is None or m.high is None
                    else f"{format_value(m.low)} – {format_value(m.high)}",
                    "samples": f"{m.n:,}",
                }
                for m in chosen.values()
            ],
            index=list(chosen),
        )

    def figure_of(self, notebook: str, name: str) -> Value | None:
        """The newest value that another notebook measured here under this name, if any did.

        This run's own comes first, wherever its results go.
        """
        return latest_figure(CHECKOUT / "results", notebook, name, first=self.result_folder)


def describe_services(endpoints: Endpoints) -> dict[str, dict[str, Any]]:
    """The services as a result file keeps them: never an address's credentials."""
    named = zip(("database", "cache", "store"), endpoints.all, strict=True)
    return {kind: describe_service(endpoint, endpoints.aws_region) for kind, endpoint in named}


def describe_service(endpoint: Endpoint, region: str | None) -> dict[str, Any]:
    """One service as a result file keeps it."""
    return {
        "label": endpoint.label,
        "version": "",
        "embedded": endpoint.embedded,
        "emulated": endpoint.emulated,
        "aws": endpoint.aws,
        "region": region,
    }
