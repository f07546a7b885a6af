"""First use: ask where the services on AWS are, and keep the answers in the settings file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import tomlkit
from pydantic import SecretStr

from workshop_lib.errors import SettingsError, redact
from workshop_lib.paths import HOME, display_path, replace_file
from workshop_lib.settings import check_values, config_file

QUESTIONS = {
    "aws_region": "AWS Region, such as us-east-1",
    "workshop_stack": "Name of the workshop's stack (- for none)",
    "dsql_endpoint": "Endpoint of the Aurora DSQL cluster",
    "valkey_endpoint": "Endpoint of the ElastiCache for Valkey",
    "bucket_name": "Name of the S3 bucket",
    "queue_url": "URL of the SQS queue for load tests (- for none)",
}
SERVICES = ("dsql_endpoint", "valkey_endpoint", "bucket_name")
ONLY_ON_AWS = {*QUESTIONS, "dsql_read_endpoint", "load_function"}


def set_up(given: Mapping[str, str], *, ask: bool) -> None:
    """Keep the services on AWS: as given, else as answered, else as the settings file has them.

    Args:
        given: by the setting's name; an empty text means that there is none.
        ask: whether a person is there to answer.

    Raises:
        click.UsageError: a value is not usable, or is missing and no person can be asked.
        SettingsError: the values do not go together, or the settings file is not usable.

    """
    path, document = _read()
    given = {"workshop_stack": "", **given} if any(map(given.get, SERVICES)) else dict(given)
    answers: dict[str, str] = {}
    for name, question in QUESTIONS.items():
        if answers.get("workshop_stack"):  # its outputs take the place of the services
            given.setdefault(name, "")
        known = str(document.get(name, ""))
        if not ask or name in given:
            answers[name] = _check(name, given.get(name, known), answers)
            continue
        # The default is shown here, because the URL of a queue has an account number in it.
        shown = f"{question} [{redact(known)}]" if known else question
        check = partial(_check, name, before=answers)
        answers[name] = click.prompt(shown, default=known, show_default=False, value_proc=check)
    others = {n: v for n, v in document.unwrap().items() if n not in ONLY_ON_AWS}
    values = {**others, **{n: v for n, v in answers.items() if v}}
    check_values(values, dict.fromkeys(values, f"file {path}"))
    _write(path, document, answers)


def use_local() -> None:
    """Back to the local engines: take out of the settings file what points to AWS.

    Raises:
        SettingsError: the settings file is not usable.

    """
    path, document = _read()
    own_store = {"bucket_name", "aws_region"} if "aws_endpoint_url_s3" in document else set()
    _write(path, document, dict.fromkeys(sorted(ONLY_ON_AWS - own_store), ""))


def _check(name: str, text: str, before: Mapping[str, str]) -> str:
    """A value in its own form, "" for none.

    Raises:
        click.UsageError: it is not usable, or missing; a person is asked again.

    """
    text = "" if text.strip() == "-" else text.strip()
    if text:
        values = {"aws_region": before.get("aws_region", text), name: text}
        try:
            value = getattr(check_values(values, dict.fromkeys(values, "this answer")), name)
        except SettingsError as error:
            raise click.UsageError(str(error)) from None
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if name == "aws_region" or (name in SERVICES and not before["workshop_stack"]):
        raise click.UsageError(
            f"{name.upper()} is missing: `workshop setup --help` shows its option. Instead of the "
            "services, --stack can name the workshop's stack; --local goes back to this machine's "
            "own engines."
        )
    return ""


def _read() -> tuple[Path, tomlkit.TOMLDocument]:
    path = config_file()
    try:
        return path, tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    except (OSError, ValueError) as error:  # among these: not TOML, not UTF-8
        raise SettingsError(
            f"The settings file {display_path(path)} cannot be read: {error}. Correct or remove it."
        ) from None


def _write(path: Path, document: tomlkit.TOMLDocument, values: Mapping[str, str]) -> None:
    """Change these settings and no other line; only its owner may read the file.

    Values are shown without the account's number, as people share their screens.
    """
    changes = {n: v for n, v in values.items() if v != document.get(n, "")}
    for name, value in changes.items():
        was = f" (was {redact(document[name])!r})" if name in document else ""
        click.echo(f"+ {name} = {redact(value)!r}{was}" if value else f"- {name}{was}")
    document.update(changes)
    for name in [name for name, value in changes.items() if not value]:
        document.remove(name)
    try:
        if changes:
            if path.parent == HOME:
                HOME.mkdir(exist_ok=True)
            replace_file(path, tomlkit.dumps(document), 0o600)
    except OSError as error:
        raise SettingsError(
            f"The settings file {display_path(path)} cannot be written: {error}. WORKSHOP_CONFIG "
            "can name another one."
        ) from None
    click.echo(f"{'Written to' if changes else 'Nothing to change in'} {display_path(path)}.")
