"""First use: `workshop setup` saves in the settings file where the services on AWS are."""

from __future__ import annotations

import click
import tomlkit

from workshop_lib.errors import SettingsError, redact
from workshop_lib.paths import display_path, replace_file
from workshop_lib.settings import as_text, check_values, config_file

QUESTIONS = {
    "aws_region": "AWS Region, such as us-east-1",
    "workshop_stack": "Name of the workshop's stack (press Enter if you have none)",
    "dsql_endpoint": "Endpoint of the Aurora DSQL cluster",
    "valkey_endpoint": "Endpoint of the ElastiCache for Valkey",
    "bucket_name": "Name of the S3 bucket",
    "queue_url": "URL of the SQS queue for load tests (press Enter if you have none)",
}
OPTIONAL = {"workshop_stack", "queue_url"}
NOT_ASKED = ("dsql_read_endpoint", "load_function")


def ask_for_services(given: dict[str, str], *, ask: bool) -> dict[str, str | None]:
    """Where the services on AWS are, or which stack has them: as given, else as answered.

    Args:
        given: by the setting's name.
        ask: whether a person is there to answer.

    Returns:
        A value for each question; None where there is none.

    Raises:
        click.UsageError: a value is malformed, or is missing and no person can be asked.

    """
    answers: dict[str, str | None] = {}

    def check(text: str) -> str | None:
        """The value in its own form; if a UsageError refuses it, a person is asked again."""
        if not text and (name in OPTIONAL or answers.get("workshop_stack")):
            return None
        try:
            settings = check_values({**answers, name: text}, {name: "workshop setup"})
        except SettingsError as error:
            raise click.UsageError(str(error)) from None
        return as_text(getattr(settings, name))

    for name, question in QUESTIONS.items():
        # A stack supplies what is not given.
        if name in given or not ask or answers.get("workshop_stack"):
            answers[name] = check(given.get(name, ""))
        else:
            answers[name] = click.prompt(question, default="", show_default=False, value_proc=check)
    return answers


def save_services(services: dict[str, str | None]) -> None:
    """Change these settings in the settings file, and no other line; only its owner may read it.

    Values are shown without the account's number, as people share their screens.

    Args:
        services: by the setting's name, None for what is to be removed. Where there are none at
            all, whatever points to AWS is removed: back to the local engines.

    Raises:
        SettingsError: the settings do not go together, or the file cannot be changed.

    """
    path = config_file()
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
        own_store = ("aws_region", "bucket_name") if "aws_endpoint_url_s3" in document else ()
        for name in QUESTIONS if services else (*QUESTIONS, *NOT_ASKED):
            if value := services.get(name):
                document[name] = value
            elif name not in own_store:
                document.pop(name, None)
        known = {n: v for n, v in document.unwrap().items() if n not in NOT_ASKED}
        check_values(known, dict.fromkeys(known, f"file {path}"))
        if document or path.exists():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, tomlkit.dumps(document), 0o600)
    except (OSError, ValueError, RecursionError) as error:  # also what is not TOML, or not UTF-8
        raise SettingsError(
            f"{display_path(path)} is unchanged (WORKSHOP_CONFIG can name another file): {error}"
        ) from None
    saved = [f"\n  {name} = {redact(value)}" for name, value in services.items() if value]
    click.echo(f"Services on AWS in {display_path(path)}:{''.join(saved) or ' none'}")
