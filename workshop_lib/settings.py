"""The settings of the workshop: one frozen object, and where each of its values came from."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError, model_validator

from workshop_lib.errors import SettingsError
from workshop_lib.paths import HOME

NAMESPACE = "[a-z][a-z0-9_]{0,39}"
"""The form of a namespace: it names a schema, and begins keys and objects' names."""

_CLUSTER = r"[a-z0-9]+\.dsql(?:-[a-z0-9]+)?\.([a-z0-9-]+)\.on\.aws"
_QUEUE = r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com/\d{12}/[A-Za-z0-9_-]{1,80}"
_PASTED = re.compile(
    r"^(?:(?!https://sqs)[a-z0-9+]+://|arn:aws:s3:::)|(?::5432|:6379)?/?$", re.IGNORECASE
)
_NEEDS = {
    "dsql_read_endpoint": "dsql_endpoint",
    "load_function": "dsql_endpoint",
    "dsql_endpoint": "aws_region",
    "queue_url": "aws_region",
    "aws_endpoint_url_s3": "bucket_name",
}
_ON_AWS = ("workshop_stack", "dsql_endpoint", "valkey_endpoint", "bucket_name", "queue_url")
_INSTEAD = {"dsql_endpoint": ["database_url"], "valkey_endpoint": ["valkey_url", "redis_url"]}


def _form(pattern: str, example: str) -> BeforeValidator:
    """Take off what is pasted along with a value (quotes, a scheme, a port), and check its form."""

    def check(value: object) -> str:
        text = _PASTED.sub("", as_text(value).strip(" \t\r\n'\"`"))
        text = text if "A-Z" in pattern else text.lower()
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it has to look like {example}")
        return text

    return BeforeValidator(check)


Region = Annotated[str, _form(r"[a-z]{2}(-[a-z]+)+-\d", "us-east-1")]
Stack = Annotated[str, _form("[A-Za-z][A-Za-z0-9-]{0,127}", "my-stack")]
Cluster = Annotated[str, _form(_CLUSTER, "<cluster-id>.dsql.<region>.on.aws")]
CacheName = Annotated[
    str, _form(r"[a-z0-9.-]+\.cache\.amazonaws\.com", "<name>.….<region>.cache.amazonaws.com")
]
Bucket = Annotated[str, _form("[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", "my-bucket")]
Queue = Annotated[SecretStr, _form(_QUEUE, "https://sqs.<region>.amazonaws.com/<12 digits>/<name>")]
Function = Annotated[str, _form("[A-Za-z0-9_-]{1,64}", "my-function")]
Namespace = Annotated[str, _form(NAMESPACE, "my_namespace")]


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Every setting with its form and default; README.md says what each is, and in which unit.

    `VALKEY_TTL` elsewhere is `valkey_ttl` here.
    """

    aws_region: Region | None = None
    workshop_stack: Stack | None = None
    dsql_endpoint: Cluster | None = None
    dsql_read_endpoint: Cluster | None = None
    database_name: str = "postgres"
    iam_username: str = "admin"
    aurora_dsql_port: int = Field(5432, ge=1, le=65_535)
    valkey_endpoint: CacheName | None = None
    valkey_ttl: float = Field(30.0, gt=0, le=86_400)
    query: str = "SELECT * FROM users1"
    dsql_pool_min: int = Field(5, ge=1, le=1_000)
    dsql_pool_max: int = Field(30, ge=1, le=1_000)
    dsql_pool_timeout: float = Field(30.0, gt=0, le=600)

    database_url: SecretStr | None = None
    valkey_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    aws_endpoint_url_s3: str | None = None
    bucket_name: Bucket | None = None
    queue_url: Queue | None = None
    load_function: Function | None = None

    dsql_rules: Literal["auto", "on", "off"] = "auto"
    workshop_namespace: Namespace = "workshop"
    workshop_state_dir: Path | None = None
    workshop_linger_seconds: float = Field(600.0, ge=0, le=86_400)
    workshop_cache_mb: int = Field(64, ge=8, le=65_536)
    workshop_result_file: Path | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse settings that contradict or need each other."""
        low, high = self.dsql_pool_min, self.dsql_pool_max
        if low > high:
            raise ValueError(f"DSQL_POOL_MIN ({low}) is larger than DSQL_POOL_MAX ({high})")
        for name, urls in _INSTEAD.items():
            for url in urls:
                if not _leads_to(getattr(self, url), getattr(self, name)):
                    raise ValueError(f"both {name.upper()} and {url.upper()} are set; unset one")
        for name, needed in _NEEDS.items():
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(
                    f"{name.upper()} is set, so {needed.upper()} is needed too: set it, or leave "
                    f"{name.upper()} out"
                )
        for name, pattern in ("dsql_endpoint", _CLUSTER), ("queue_url", _QUEUE):
            found = re.fullmatch(pattern, as_text(getattr(self, name)))
            if found and found[1] != self.aws_region:
                raise ValueError(
                    f"{name.upper()} is in {found[1]}, AWS_REGION is {self.aws_region}; correct one"
                )
        return self

    @property
    def cache_url(self) -> SecretStr | None:
        """VALKEY_URL, or REDIS_URL where only that is set."""
        return self.valkey_url or self.redis_url

    @property
    def cache_setting(self) -> str:
        """Which of the two that is."""
        return "VALKEY_URL" if self.valkey_url else "REDIS_URL"

    @property
    def pool(self) -> dict[str, Any]:
        """Of `Database`, the arguments about its connections."""
        low, high = self.dsql_pool_min, self.dsql_pool_max
        return {"pool_min": low, "pool_max": high, "pool_timeout_s": self.dsql_pool_timeout}

    @property
    def uses_external(self) -> str:
        """The services that are not the local engines', for display; empty if all are local."""
        external = {
            "the database": self.database_url or self.dsql_endpoint,
            "the cache": self.cache_url or self.valkey_endpoint,
            "the object store": self.bucket_name,
        }
        return ", ".join(name for name, setting in external.items() if setting)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings and, for each that is not a default, the source that supplied it."""

    values: Settings
    sources: dict[str, str]


def load_settings(**overrides: object) -> LoadedSettings:
    """Read the settings: arguments win over the environment, it wins over `workshop.toml`.

    Where WORKSHOP_STACK names a stack, its outputs stand for what none of them says.
    An argument that is an empty text unsets what the environment or the file says.
    The file is the one that WORKSHOP_CONFIG names, else `workshop.toml` in the checkout if present.

    Raises:
        SettingsError: a value is malformed, unknown or contradicts another one; the text names
            each, where it came from and what is allowed. Or the stack cannot be read.

    """
    _refuse_misspelt_variables()
    origins = {
        f"file {config_file()}": _file_values(),
        "environment": _environment(),
        "argument": {k: None if v == "" else v for k, v in overrides.items() if v is not None},
    }
    given = {name: value for values in origins.values() for name, value in values.items()}
    if not any(map(given.get, _ON_AWS)):
        try:
            Settings(aws_region=given.get("aws_region"))
        except ValidationError:  # another program's: nothing is asked there
            del given["aws_region"]
    sources = {n: source for source, values in origins.items() for n in values if n in given}
    outputs = _stack_outputs(given, sources) if given.get("workshop_stack") else {}
    sources = dict.fromkeys(outputs, f"stack {given.get('workshop_stack')}") | sources
    return LoadedSettings(check_values(outputs | given, sources), sources)


def check_values(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    """The settings of these values alone, whatever else is set.

    Args:
        values: by the setting's name.
        sources: where each came from, as an error says it.

    Raises:
        SettingsError: as `load_settings`.

    """
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_problems(error, sources)) from None


def _stack_outputs(given: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
    """What the stack says, but for services in whose place another one is given."""
    # Not at the top: it takes boto3, which takes a while, and most have no stack.
    from workshop_lib.aws.outputs import read_outputs  # noqa: PLC0415

    named = {n: given[n] for n in ("workshop_stack", "aws_region") if n in given}
    stack = check_values(named, sources)
    outputs = read_outputs(str(stack.workshop_stack), stack.aws_region)
    urls = {name: [given.get(url) for url in _INSTEAD.get(name, ())] for name in outputs}
    return {n: v for n, v in outputs.items() if all(_leads_to(url, v) for url in urls[n])}


def state_dir() -> Path | None:
    """WORKSHOP_STATE_DIR alone, also where another setting is not usable."""
    named: Any = os.environ.get("WORKSHOP_STATE_DIR")
    with suppress(SettingsError):
        named = named or _file_values().get("workshop_state_dir")
    return Path(named) if named and isinstance(named, str) else None


def config_file() -> Path:
    """Where the settings file is looked for; it need not exist unless WORKSHOP_CONFIG names it."""
    return Path(os.environ.get("WORKSHOP_CONFIG") or HOME / "workshop.toml")


def _environment() -> dict[str, str]:
    """The variables that are settings; an empty one counts as unset."""
    given = {name.lower(): value for name, value in os.environ.items() if value}
    return {name: given[name] for name in Settings.model_fields if name in given}


def _file_values() -> dict[str, Any]:
    path = config_file()
    if os.environ.get("WORKSHOP_CONFIG") and (path.is_dir() or not path.exists()):
        raise SettingsError(
            f"WORKSHOP_CONFIG names {path}, which does not exist as a file. Correct or unset it."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:  # also what is not TOML, or not UTF-8
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from None


def _refuse_misspelt_variables() -> None:
    """Of the variables that begin as ours do; those of other programs are not looked at."""
    known = [name.upper() for name in Settings.model_fields] + ["WORKSHOP_CONFIG"]
    ours = (n for n in os.environ if n.startswith(("WORKSHOP_", "DSQL_", "VALKEY_")))
    for name in sorted(set(ours).difference(known)):
        for meant in difflib.get_close_matches(name, known, 1, 0.85):
            raise SettingsError(
                f"The environment has {name}, which is not a setting. Did you mean {meant}? If so, "
                "rename it, else unset it."
            )


def _problems(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Each problem with the setting's name and where its value came from."""
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            name = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                known = ", ".join(Settings.model_fields)
                message = f"there is no such setting. There are: {known}"
            value = "" if name.endswith("_url") else f"={problem['input']!r}"
            shown = name if sources[name].startswith("file ") else name.upper()
            message = f"{shown}{value} (from {sources[name]}): {message}"
        lines.append(message)
    return f"A setting is not usable. {'; '.join(lines)}."


def _leads_to(url: object, endpoint: str | None) -> bool:
    """Whether a URL leads to this endpoint, as those of `workshop env` do; so if one is missing."""
    try:
        return not (url and endpoint) or urlsplit(as_text(url)).hostname == endpoint
    except ValueError:  # malformed, which is said when it is used
        return False


def as_text(value: object) -> str:
    """A setting as its text, also where that is a secret."""
    return str(value.get_secret_value() if isinstance(value, SecretStr) else value)
