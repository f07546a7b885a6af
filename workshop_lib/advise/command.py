"""`workshop advise`: which statements of your own service are worth a cache."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from workshop_lib.errors import DataError
from workshop_lib.options import a_file, as_json
from workshop_lib.paths import FILES, PACKAGE

TEMPLATE = PACKAGE / "templates" / "advice.txt"
DOCS = FILES / "docs" / "for-my-service.md"
WIDTH = 100
positive = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="replace"), required=False)
@click.option("--ttl", "ttl_s", type=positive, default=60, show_default=True,
              help="seconds that an answer may be used")  # fmt: skip
@click.option("--distinct", type=positive, default=1_000, show_default=True,
              help="different parameter values per statement")  # fmt: skip
@click.option("--days", type=positive,
              help="days that the statistics cover  [default: as the file says]")  # fmt: skip
@click.option("--calls-per-second", "calls_per_s", type=positive, default=1, show_default=True,
              help="call rate where the file gives none")  # fmt: skip
@click.option("--cache-ms", type=positive, default=0.5, show_default=True,
              help="one look-up or fill, network included")  # fmt: skip
@click.option("--network-ms", type=positive, default=0.5, show_default=True,
              help="round trip to the database")  # fmt: skip
@click.option("--row-bytes", type=positive, default=200, show_default=True,
              help="size of a result row")  # fmt: skip
@click.option("--region-prices", type=a_file,
              help="another file of the form of data/prices.toml")  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=10, show_default=True,
              help="how many statements of a kind to show")  # fmt: skip
@as_json
def advise(
    file: TextIO | None,
    *,
    region_prices: Path | None,
    top: int,
    as_json: bool,
    **assumed: float,
) -> None:
    """Say which statements of your own service are worth a cache, and which to leave alone.

    FILE is a CSV of pg_stat_statements, or plans of Aurora DSQL. Without FILE: how to make one.
    """
    if file is None:
        click.echo(DOCS.read_text(encoding="utf-8").partition("## Read the answer")[0].strip())
        return
    import jinja2  # noqa: PLC0415 -- slow to import, as what follows; --help does without

    from workshop_lib import prices  # noqa: PLC0415

    try:
        from workshop_lib.advise import advice, statistics_file  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise DataError(
            f"The package {error.name} is not installed, which reads SQL. `make venv` installs it; "
            "for Macs with Intel's processors there is none."
        ) from None
    known = prices.load_prices(region_prices or prices.FILE)
    statistics, hidden = statistics_file.parse(file.read())
    found = advice.advise(statistics, advice.Assumptions(**assumed), known, hidden)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    language = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 -- no HTML
    language.filters |= {"figure": advice.figure, "fill": _fill}
    template = language.from_string(TEMPLATE.read_text(encoding="utf-8"))
    warning = known.warning(datetime.now(UTC).date())
    click.echo(template.render(it=found, verdicts=advice.VERDICTS, top=top, warning=warning))


def _fill(text: str, indent: str = "") -> str:
    """Lines of at most `WIDTH` characters, the first of which begins with `indent`."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
