"""First-use set-up: say once where the services on AWS are, and keep it in the settings file."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import SecretStr
from tomlkit.exceptions import TOMLKitError

from workshop_lib.aws.regions import check_region
from workshop_lib.errors import AwsError, SettingsError, one_line
from workshop_lib.settings import config_file, near, validate

Ask = Callable[[str, str], str]
"""Puts a question with a default answer to a person; returns the answer."""
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Question:
    """One setting that can be given or asked for.

    Attributes:
        setting: its name.
        option: of `workshop setup`.
        text: how a person is asked.
        needed: there has to be an answer, where no stack gives it.

    """

    setting: str
    option: str
    text: str
    needed: bool = True


REGION = Question("aws_region", "--region", "AWS Region, such as us-east-1")
STACK = Question("workshop_stack", "--stack", "Name of the workshop's stack", needed=False)
SERVICES = (
    Question("dsql_endpoint", "--dsql-endpoint", "Endpoint of the Aurora DSQL cluster"),
    Question("valkey_endpoint", "--valkey-endpoint", "Endpoint of the ElastiCache for Valkey"),
    Question("bucket_name", "--bucket", "Name of the S3 bucket"),
    Question("queue_url", "--queue-url", "URL of the SQS queue for load tests", needed=False),
)
QUESTIONS = (REGION, STACK, *SERVICES)
FROM_STACK = ("dsql_read_endpoint", "load_function")
"""Further settings that make no sense without AWS."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written.

    Attributes:
        path: the settings file.
        text: what it holds now; empty if there is none.
        before: the settings in it.
        after: those that it will hold.

    """

    path: Path
    text: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @property
    def changes(self) -> list[str]:
        """Each setting that is added, changed or removed, as a line to show."""
        return list(self._changes())

    @property
    def overruled(self) -> list[str]:
        """The environment variables that say something else, and win over the file."""
        names = [question.setting for question in QUESTIONS]
        found = {name: os.environ.get(name.upper(), "") for name in names}
        return [n.upper() for n, value in found.items() if value and value != self.after.get(n)]

    def save(self) -> None:
        """Write the file, for nobody else to read; its other lines and comments stay.

        Raises:
            SettingsError: it cannot be written.

        """
        document = tomlkit.parse(self.text)
        for name in set(self.before) - set(self.after):
            document.remove(name)
        for name, value in self.after.items():
            if self.before.get(name) != value:
                document[name] = value
        try:
            _replace(self.path.resolve(), tomlkit.dumps(document))
        except OSError as error:
            raise SettingsError(
                f"The settings file {near(self.path)} cannot be written: {error}. WORKSHOP_CONFIG "
                "names another one."
            ) from None

    def _changes(self) -> Iterator[str]:
        for name in sorted({*self.before, *self.after}):
            old, new = self.before.get(name), self.after.get(name)
            if old == new:
                continue
            # The account's number is masked: this is read on shared screens.
            was, will = one_line(repr(old)), one_line(repr(new))
            if new is None:
                yield f"- {name} (was {was})"
            else:
                yield f"+ {name} = {will}" + ("" if old is None else f" (was {was})")


def plan_local() -> Plan:
    """Back to the local engines: without what points to AWS, and otherwise as it is.

    Raises:
        SettingsError: the settings file is not usable.

    """
    path, text, before = _read()
    gone = {question.setting for question in QUESTIONS} | set(FROM_STACK)
    if "aws_endpoint_url_s3" in before:  # a store of one's own, in whatever Region it goes by
        gone -= {"bucket_name", "aws_region"}
    return _plan(path, text, before, {n: v for n, v in before.items() if n not in gone})


def plan_aws(given: Mapping[str, str], ask: Ask | None, say: Say) -> Plan:
    """The services on AWS: as given, as they stand in the settings file, or else as answered.

    Args:
        given: by the setting's name.
        ask: None if nobody is there to answer.
        say: shows a line: what was tidied up, or what is wrong with an answer.

    Raises:
        SettingsError: a value is not usable, or one is missing and nobody can be asked.

    """
    path, text, before = _read()
    known = {question.setting for question in QUESTIONS}
    found = _Answers({n: v for n, v in before.items() if n in known}, ask, say)
    for question in QUESTIONS:
        if question.setting in given:
            found.take(question, given[question.setting])
    by_hand = any(question.setting in given for question in SERVICES if question.needed)
    if ask:
        found.ask(REGION, unless=given)
        if not by_hand:
            found.ask(STACK, unless=given)
    if STACK.setting in given or (STACK.setting in found.values and not by_hand):
        found.require(REGION)
        # What the file says wins over a stack: what is left from before would.
        services = {question.setting for question in SERVICES}
        after = {n: v for n, v in found.values.items() if n not in services or n in given}
    else:
        for question in SERVICES if ask else ():
            found.ask(question, unless=given)
        found.require(REGION, *SERVICES)
        after = {n: v for n, v in found.values.items() if n != STACK.setting}
    others = {n: v for n, v in before.items() if n not in known}
    return _plan(path, text, before, {**others, **after})


class _Answers:
    """The values so far; each is looked at as soon as it is there."""

    def __init__(self, values: dict[str, Any], ask: Ask | None, say: Say) -> None:
        self.values = values
        self._ask, self._say = ask, say

    def take(self, question: Question, text: str) -> None:
        """Accept a value; an empty one means that there is none."""
        tidy = _tidy(question, text)
        name = question.setting
        if not tidy:
            self.values.pop(name, None)
            return
        # With the Region alone: what the file says of the others may be about to change.
        beside = {n: v for n, v in self.values.items() if n == REGION.setting}
        settings = validate({**beside, name: tidy}, {name: question.option})
        if name == REGION.setting:
            try:
                check_region(tidy, question.option)
            except AwsError as error:
                raise SettingsError(str(error)) from None
        self.values[name] = _plain(getattr(settings, name))
        if self.values[name] != text:
            self._say(f"{name.upper()} is taken as {one_line(self.values[name])!r}.")

    def ask(self, question: Question, unless: Mapping[str, str]) -> None:
        """Ask until the answer is usable; what was there before is the default."""
        if self._ask is None or question.setting in unless:
            return
        while True:
            known = self.values.get(question.setting, "")
            none = "" if question.needed else " (- for none)" if known else " (Enter for none)"
            answer = self._ask(question.text + none, known)
            if answer.strip() == "-" and not question.needed:
                answer = known = ""
            try:
                self.take(question, answer or known)
            except SettingsError as error:
                self._say(str(error))
                continue
            if question.setting in self.values or not question.needed:
                return
            self._say(f"{question.setting.upper()} is needed.")

    def require(self, *questions: Question) -> None:
        """Refuse to go on without what is needed."""
        missing = [q.option for q in questions if q.needed and q.setting not in self.values]
        if missing:
            raise SettingsError(
                f"Missing, and there is no terminal to ask at: {', '.join(missing)}. Give them, or "
                "--stack with the name of the workshop's stack and --region, or --local for this "
                "machine's own engines."
            )


def _read() -> tuple[Path, str, dict[str, Any]]:
    path = config_file()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return path, text, tomlkit.parse(text).unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise SettingsError(
            f"The settings file {near(path)} cannot be read: {error}. Correct or remove it."
        ) from None


def _plan(path: Path, text: str, before: dict[str, Any], after: dict[str, Any]) -> Plan:
    """Only if the result is usable as a whole.

    Raises:
        SettingsError: it is not.

    """
    # What a stack has to give is not there yet.
    checked = {n: v for n, v in after.items() if n not in FROM_STACK}
    validate(checked, dict.fromkeys(after, f"file {near(path)}"))
    return Plan(path, text, before, after)


def _tidy(question: Question, text: str) -> str:
    """What people paste along with a value, off."""
    value = text.strip().strip("'\"`").strip()
    if question in (SERVICES[0], SERVICES[1]):
        value = re.sub(r"^[a-z+]+://", "", value.lower()).rstrip("/")
    elif question is SERVICES[2]:
        value = re.sub(r"^(s3://|arn:aws:s3:::)", "", value).rstrip("/")
    elif question is REGION:
        value = value.lower()
    return value


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, so that nobody ever finds half of it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
