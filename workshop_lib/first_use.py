"""First use: ask where the services on AWS are, and keep the answers in the settings file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import tomlkit
from pydantic import SecretStr
from tomlkit.exceptions import TOMLKitError

from workshop_lib.aws import check_region
from workshop_lib.errors import SettingsError, WorkshopError, redact
from workshop_lib.paths import display_path
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
ONLY_ON_AWS = ("dsql_read_endpoint", "load_function")
"""Further settings that make no sense without AWS, and that nobody is asked for."""

Ask = Callable[[str, str], str]
"""Puts a question, with what is known already, to a person; returns the answer."""
Say = Callable[[str], object]


def set_up(given: Mapping[str, str], ask: Ask | None, say: Say) -> None:
    """Keep the services on AWS: as given, else as answered, else as the settings file has them.

    Args:
        given: by the setting's name; an empty text means that there is none.
        ask: None if nobody is there to answer.
        say: shows a line: what is wrong with an answer, or what was written.

    Raises:
        WorkshopError: a value is not usable, or is missing and nobody can be asked.

    """
    path, document = _read()
    given = {"workshop_stack": "", **given} if any(map(given.get, SERVICES)) else dict(given)
    answers: dict[str, str] = {}
    for name, question in QUESTIONS.items():
        if answers.get("workshop_stack"):  # its outputs take the place of the services
            given.setdefault(name, "")
        known = str(document.get(name, ""))
        while name not in answers:
            asks = ask if ask and name not in given else None
            text = asks(question, known) if asks else given.get(name, known)
            try:
                answers[name] = _look_at(name, text, answers)
            except WorkshopError as error:
                if not asks:
                    raise
                say(str(error))
    others = {n: v for n, v in document.unwrap().items() if n not in {*QUESTIONS, *ONLY_ON_AWS}}
    check_values({**others, **{n: v for n, v in answers.items() if v}}, f"file {path}")
    _write(path, document, answers, say)


def use_local(say: Say) -> None:
    """Back to the local engines: take out of the settings file what points to AWS.

    Raises:
        SettingsError: the settings file is not usable.

    """
    path, document = _read()
    gone = {*QUESTIONS, *ONLY_ON_AWS}
    if "aws_endpoint_url_s3" in document:  # a store of one's own, in whatever Region it goes by
        gone -= {"bucket_name", "aws_region"}
    _write(path, document, dict.fromkeys(sorted(gone), ""), say)


def _look_at(name: str, text: str, before: Mapping[str, str]) -> str:
    """A value in its own form, "" for none.

    Raises:
        WorkshopError: it is not usable, or missing.

    """
    text = "" if text.strip() == "-" else text.strip()
    if not text and (name == "aws_region" or (name in SERVICES and not before["workshop_stack"])):
        raise SettingsError(
            f"{name.upper()} is missing: `workshop setup --help` shows its option. Instead of the "
            "services, --stack can name the workshop's stack; --local goes back to this machine's "
            "own engines."
        )
    if not text:
        return ""
    region = {"aws_region": before.get("aws_region", text)}
    value = getattr(check_values({**region, name: text}, "this answer"), name)
    if name == "aws_region":
        check_region(value, "--region")
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _read() -> tuple[Path, tomlkit.TOMLDocument]:
    path = config_file()
    try:
        return path, tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise SettingsError(
            f"The settings file {display_path(path)} cannot be read: {error}. Correct or remove it."
        ) from None


def _write(path: Path, document: tomlkit.TOMLDocument, values: Mapping[str, str], say: Say) -> None:
    """Change these settings and no other line; nobody else may read the file, nor find half of it.

    Values are shown without the account's number, as people share their screens.
    """
    changes = {n: v for n, v in values.items() if v != document.get(n, "")}
    for name, value in changes.items():
        was = f" (was {redact(document[name])!r})" if name in document else ""
        say(f"+ {name} = {redact(value)!r}{was}" if value else f"- {name}{was}")
    document.update({n: v for n, v in changes.items() if v})
    for name in [n for n, v in changes.items() if not v]:
        document.remove(name)
    place = path.resolve()  # a link stays a link
    draft = place.with_name(f".{place.name}.new")
    try:
        if changes:
            draft.touch(mode=0o600)
            draft.write_text(tomlkit.dumps(document), encoding="utf-8")
            draft.replace(place)
    except OSError as error:
        raise SettingsError(
            f"The settings file {display_path(path)} cannot be written: {error}. WORKSHOP_CONFIG "
            "can name another one."
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    say(f"{'Written to' if changes else 'Nothing to change in'} {display_path(path)}.")
    for name, value in values.items():
        if os.environ.get(name.upper()) not in {None, "", value}:
            say(f"But {name.upper()} is set in the environment, which wins: unset {name.upper()}")
