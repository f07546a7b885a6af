"""`workshop advise`: which statements of your own service are worth a cache."""

from __future__ import annotations

import json
import textwrap
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workshop_lib.errors import DataError
from workshop_lib.options import a_file, as_json
from workshop_lib.paths import replace_file

if TYPE_CHECKING:
    from workshop_lib.advise import Report

TEMPLATES = Path(__file__).parent / "templates"
WIDTH = 100
UNITS = {"days": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}
HOW = r"""
`workshop advise FILE` says which statements are worth a cache. Nothing leaves this machine. Make
FILE in one of three ways:

1. Any PostgreSQL with pg_stat_statements (14 or newer), by psql, in the service's database:

\copy (SELECT query, calls, total_exec_time, total_plan_time, rows, extract(epoch FROM now() - stats_reset) / 86400 AS days FROM pg_stat_statements, pg_stat_statements_info WHERE toplevel AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) TO 'statements.csv' WITH (FORMAT csv, HEADER)

   PostgreSQL 13 or older does not know how many days that covers, so say it by --days:

\copy (SELECT * FROM pg_stat_statements) TO 'statements.csv' WITH (FORMAT csv, HEADER)

2. Aurora DSQL: write EXPLAIN ANALYZE VERBOSE before each statement, in a file; psql runs them all:

psql -e -f explained.sql > plans.txt

3. A CSV of your own, as from DSQL's statement statistics in CloudWatch: a first line with query,
   calls and mean_ms; rows (of all calls), dpu (of one call) and days as well if you know them.
"""  # noqa: E501 -- psql's \copy is one line


OPTIONS = {"ttl_s": "ttl", "calls_per_s": "calls-per-second"}
"""Assumptions whose option has another name."""


@click.command()
@click.argument("file", type=a_file, required=False)
@click.option("--ttl", "ttl_s", type=float, default=60, show_default=True,
              help="seconds that an answer may be used")  # fmt: skip
@click.option("--distinct", type=float, default=1_000, show_default=True,
              help="different parameter values per statement")  # fmt: skip
@click.option("--days", type=float,
              help="days that the statistics cover  [default: as the file says]")  # fmt: skip
@click.option("--calls-per-second", "calls_per_s", type=float, default=1, show_default=True,
              help="call rate where the file gives none")  # fmt: skip
@click.option("--cache-ms", type=float, default=0.5, show_default=True,
              help="one look-up or fill, network included")  # fmt: skip
@click.option("--network-ms", type=float, default=0.5, show_default=True,
              help="round trip to the database")  # fmt: skip
@click.option("--row-bytes", type=float, default=200, show_default=True,
              help="size of a result row")  # fmt: skip
@click.option("--region-prices", type=a_file,
              help="another file of the form of data/prices.toml")  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=10, show_default=True,
              help="how many statements of a kind to show")  # fmt: skip
@click.option("--page", type=a_file, help="write it as a page, with all statements")
@as_json
def advise(
    file: Path | None,
    *,
    region_prices: Path | None,
    top: int,
    page: Path | None,
    as_json: bool,
    **assumed: float,
) -> None:
    """Say which statements of your own service are worth a cache, and which to leave alone.

    FILE is a CSV of pg_stat_statements, or plans of Aurora DSQL. Without FILE: how to make one.
    """
    if file is None:
        click.echo(HOW.strip())
        return
    found, warning = _report(file, region_prices, assumed)
    if page:
        style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
        style_hash = b64encode(sha256(style.encode()).digest()).decode()
        more = {"style": style, "style_hash": style_hash, "file": file.name}
        text = _render("advice.html", found, warning=warning, **more)
        try:
            replace_file(page, text)
        except OSError as error:
            raise DataError(f"The page {page} cannot be written: {error.strerror}.") from None
        click.echo(f"The page: {page}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(_render("advice.txt", found, top=top, warning=warning))


def _report(
    file: Path, region_prices: Path | None, assumed: dict[str, float]
) -> tuple[Report, str]:
    """The advice, and what to be careful about in the prices.

    Raises:
        DataError: a file cannot be read, or the parser is not there.

    """
    from workshop_lib.prices import FILE, load_prices  # noqa: PLC0415 -- it takes pandas

    try:
        from workshop_lib.advise import Assumptions, advise  # noqa: PLC0415 -- as above: numpy
        from workshop_lib.statistics_file import parse  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise DataError(
            f"The package {error.name} is not installed, which reads SQL. `make venv` installs it; "
            "for Macs with Intel's processors there is none."
        ) from None
    prices = load_prices(region_prices or FILE)
    try:
        assumptions = Assumptions(**assumed)
    except ValueError as error:
        field, _, said = str(error).partition(" ")
        raise DataError(f"--{OPTIONS.get(field, field.replace('_', '-'))} {said}.") from None
    try:
        statistics, hidden = parse(file.read_text(encoding="utf-8-sig"))
        found = advise(statistics, assumptions, prices, hidden)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8: {error.reason} ({error.start}).") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return found, prices.warning(datetime.now(UTC).date())


def _render(template: str, found: Report, **more: Any) -> str:
    import jinja2  # noqa: PLC0415 -- only to show something

    from workshop_lib.advise import VERDICTS, figure  # noqa: PLC0415

    language = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    language.filters.update(
        figure=figure,
        span=_span,
        fill=lambda text, indent="": textwrap.fill(
            text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)
        ),
    )
    return language.get_template(template).render(it=found, verdicts=VERDICTS, **more)


def _span(seconds: float) -> str:
    from workshop_lib.advise import figure  # noqa: PLC0415

    unit, size = next(((u, s) for u, s in UNITS.items() if abs(seconds) >= s), ("ms", 0.001))
    return f"{figure(seconds / size)} {unit}"
