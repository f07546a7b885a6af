"""The settings of the workshop: one frozen object that can say where each value came from."""

from __future__ import annotations

import html
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from workshop_lib.errors import SettingsError

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds `notebooks/`; results and the state folder's name derive from it."""

NAMESPACE = "[a-z][a-z0-9_]{0,39}"
"""The form of a namespace: it names a schema, and begins keys and objects' names."""

_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_DSQL = re.compile(r"[a-z0-9]+\.dsql(?:-[a-z0-9]+)?\.([a-z0-9-]+)\.on\.aws")
_VALKEY = re.compile(r"[a-z0-9.-]+\.cache\.amazonaws\.com")
_STACK = re.compile(r"^[A-Za-z][A-Za-z0-9-]{0,127}$")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_QUEUE = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com/\d{12}/[A-Za-z0-9_-]{1,80}")


class Settings(BaseSettings):
    """Every knob. `VALKEY_TTL` in the environment is `valkey_ttl` in the file."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    aws_region: str | None = Field(None, description="AWS Region of the services")
    workshop_stack: Annotated[str, Field(pattern=_STACK.pattern)] | None = Field(
        None, description="the workshop's CloudFormation stack, whose outputs are settings"
    )
    dsql_endpoint: str | None = Field(None, description="Aurora DSQL cluster endpoint")
    dsql_read_endpoint: str | None = Field(
        None, description="another endpoint of the same cluster's data, for reads of a load test"
    )
    valkey_endpoint: str | None = Field(None, description="ElastiCache for Valkey endpoint")
    valkey_ttl: Annotated[float, Field(gt=0, le=86_400)] = Field(
        30.0, description="time to live of a cached entry, seconds"
    )
    query: str = Field("SELECT * FROM users1", description="your own query for notebook 02")
    dsql_pool_min: Annotated[int, Field(ge=1, le=1_000)] = Field(
        5, description="connections the pool keeps open when they are idle"
    )
    dsql_pool_max: Annotated[int, Field(ge=1, le=1_000)] = Field(
        30, description="connections the pool opens at most"
    )
    dsql_pool_timeout: Annotated[float, Field(gt=0, le=600)] = Field(
        30.0, description="wait for a free connection, seconds"
    )

    database_url: SecretStr | None = Field(None, description="a PostgreSQL of your own")
    valkey_url: SecretStr | None = Field(None, description="a Valkey of your own")
    redis_url: SecretStr | None = Field(None, description="the same, under its older name")
    aws_endpoint_url_s3: str | None = Field(None, description="an S3-compatible store of your own")
    bucket_name: str | None = Field(None, description="the bucket for the workshop's objects")
    queue_url: SecretStr | None = Field(
        None, description="an SQS queue on AWS for the load tests; masked for its account number"
    )

    load_function: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = Field(
        None, description="the Lambda function that does the work of load tests"
    )

    dsql_rules: Literal["auto", "on", "off"] = Field(
        "auto", description="keep Aurora DSQL's rules: auto is on for the local engine only"
    )
    workshop_namespace: Annotated[str, Field(pattern=f"^{NAMESPACE}$")] = Field(
        "workshop", description="schema, key prefix and object prefix of this learner or run"
    )
    workshop_state_dir: Path | None = Field(None, description="where the local engines keep state")
    workshop_linger_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        600.0, description="how long the engines outlive the last notebook, seconds"
    )
    workshop_cache_mb: Annotated[int, Field(ge=8, le=65_536)] = Field(
        64, description="maxmemory of the local cache, MiB"
    )
    workshop_result_file: Path | None = Field(None, description="where this run's result goes")

    @field_validator("aws_region")
    @classmethod
    def _region(cls, value: str | None) -> str | None:
        if value is not None and not _REGION.fullmatch(value):
            raise ValueError(f"{value!r} is not a Region name such as us-east-1")
        return value

    @field_validator("dsql_endpoint", "dsql_read_endpoint")
    @classmethod
    def _dsql(cls, value: str | None) -> str | None:
        value = _host_only(value, ":5432")
        if value is not None and not _DSQL.fullmatch(value):
            raise ValueError(f"{value!r} is not of the form <cluster-id>.dsql.<region>.on.aws")
        return value

    @field_validator("valkey_endpoint")
    @classmethod
    def _valkey(cls, value: str | None) -> str | None:
        value = _host_only(value, ":6379")
        if value is not None and not _VALKEY.fullmatch(value):
            raise ValueError(
                f"{value!r} is not of the form <name>.serverless.<region>.cache.amazonaws.com"
            )
        return value

    @field_validator("bucket_name")
    @classmethod
    def _bucket(cls, value: str | None) -> str | None:
        if value is not None and not _BUCKET.fullmatch(value):
            raise ValueError(f"{value!r} is not the name of a bucket such as my-bucket-1")
        return value

    @field_validator("queue_url")
    @classmethod
    def _queue(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _QUEUE.fullmatch(value.get_secret_value()):
            raise ValueError(
                "it is not of the form https://sqs.<region>.amazonaws.com/<12 digits>/<name>, "
                "the URL of a standard queue"
            )
        return value

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.dsql_pool_min > self.dsql_pool_max:
            raise ValueError(
                f"DSQL_POOL_MIN ({self.dsql_pool_min}) is larger than "
                f"DSQL_POOL_MAX ({self.dsql_pool_max})"
            )
        if self.dsql_endpoint and not _same_host(self.database_url, self.dsql_endpoint):
            raise ValueError("both DSQL_ENDPOINT and DATABASE_URL are set; unset one of them")
        if self.valkey_endpoint and not _same_host(self.cache_url, self.valkey_endpoint):
            raise ValueError("both VALKEY_ENDPOINT and VALKEY_URL (REDIS_URL) are set; unset one")
        if self.dsql_read_endpoint and not self.dsql_endpoint:
            raise ValueError("DSQL_READ_ENDPOINT is set, so DSQL_ENDPOINT is needed too")
        if self.dsql_endpoint and not self.aws_region:
            raise ValueError("DSQL_ENDPOINT is set, so AWS_REGION is needed too")
        if self.load_function and not self.dsql_endpoint:
            raise ValueError("LOAD_FUNCTION is set, so DSQL_ENDPOINT is needed too")
        if self.dsql_endpoint and self.aws_region != (region := dsql_region(self.dsql_endpoint)):
            raise ValueError(
                f"DSQL_ENDPOINT is in {region}, AWS_REGION is {self.aws_region}; correct one"
            )
        if self.queue_url:
            found = _QUEUE.fullmatch(self.queue_url.get_secret_value())
            region = found[1] if found else ""
            if not self.aws_region:
                raise ValueError("QUEUE_URL is set, so AWS_REGION is needed too")
            if self.aws_region != region:
                raise ValueError(
                    f"QUEUE_URL is in {region}, AWS_REGION is {self.aws_region}; correct one"
                )
        if self.aws_endpoint_url_s3 and not self.bucket_name:
            raise ValueError("AWS_ENDPOINT_URL_S3 is set, so BUCKET_NAME is needed too")
        return self

    @property
    def cache_url(self) -> SecretStr | None:
        """VALKEY_URL, or REDIS_URL where only that is set."""
        return self.valkey_url or self.redis_url

    @property
    def uses_external(self) -> str:
        """The services that are not the local engines', for display; empty if all are local."""
        external = {
            "the database": self.database_url or self.dsql_endpoint,
            "the cache": self.cache_url or self.valkey_endpoint,
            "the object store": self.bucket_name,
        }
        return ", ".join(name for name, setting in external.items() if setting)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use `load_settings`'s merged values only: it knows the sources, in their order."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class SettingOrigin:
    """One setting for display: secrets are masked."""

    name: str
    value: str
    source: str
    description: str


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings and, for each, the source that supplied it."""

    values: Settings
    sources: dict[str, str]

    def origins(self) -> list[SettingOrigin]:
        """Every setting with its value (secrets masked) and where it came from."""
        return [
            SettingOrigin(
                name=name.upper(),
                value=_shown(getattr(self.values, name)),
                source=self.sources.get(name, "default"),
                description=field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ]

    def _repr_html_(self) -> str:
        rows = ((o.name, o.value, o.source, o.description) for o in self.origins())
        head = _cells(("setting", "value", "from", "what it is"), "th")
        return f"<table>{head}{''.join(_cells(row, 'td') for row in rows)}</table>"


def _cells(texts: Iterable[str], kind: str) -> str:
    inner = (f"<{kind} style='text-align:left'>{html.escape(text)}</{kind}>" for text in texts)
    return f"<tr>{''.join(inner)}</tr>"


def dsql_region(endpoint: str) -> str:
    """The Region of a cluster, which is part of its endpoint's name.

    >>> dsql_region("abcdefghij.dsql.us-east-1.on.aws")
    'us-east-1'
    """
    found = _DSQL.fullmatch(endpoint)
    return found[1] if found else ""


def near(path: Path) -> str:
    """A path as it is written from the checkout, if it lies in there."""
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)


def load_settings(**overrides: object) -> LoadedSettings:
    """Read the settings: arguments win over the environment, it wins over `workshop.toml`.

    Where WORKSHOP_STACK names a stack, its outputs stand for what none of them says.
    An argument that is an empty text unsets what the environment or the file says.
    The file is the one that WORKSHOP_CONFIG names, else `workshop.toml` in the checkout if present.

    Raises:
        SettingsError: a value is malformed, unknown or contradicts another one; the text names
            each, where it came from and what is allowed. Or the stack cannot be read.

    """
    path = config_file()
    layers = {
        "argument": {k: None if v == "" else v for k, v in overrides.items() if v is not None},
        "environment": EnvSettingsSource(Settings)(),
        f"file {path}": _read_file(path),
    }
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def add(source: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name not in merged:
                merged[name], sources[name] = value, source

    for source, values in layers.items():
        add(source, values)
    if stack := merged.get("workshop_stack"):
        add(f"stack {stack}", _read_stack(merged))
    return LoadedSettings(validate(merged, sources), sources)


def validate(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    """The settings of these values; the others have their defaults.

    Args:
        values: by the setting's name.
        sources: for each, where it came from, as an error names it.

    Raises:
        SettingsError: a value is malformed, unknown or contradicts another one.

    """
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from None


def config_file() -> Path:
    """Where the settings file is looked for; it need not exist unless WORKSHOP_CONFIG names it."""
    return Path(os.environ.get("WORKSHOP_CONFIG") or CHECKOUT / "workshop.toml")


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists() and "WORKSHOP_CONFIG" not in os.environ:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise SettingsError(
            f"WORKSHOP_CONFIG names {path}, which does not exist. Correct or unset it."
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from None


def _read_stack(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the stack says, but for services in whose place another is given."""
    # Not at the top: it takes boto3, which takes a while, and most have no stack.
    from workshop_lib.stack import read_outputs  # noqa: PLC0415

    name, region = str(given["workshop_stack"]), given.get("aws_region")
    if not _STACK.match(name) or (region and not _REGION.fullmatch(str(region))):
        return {}  # which is said when all settings are looked at
    found = read_outputs(name, region)
    instead = {
        "dsql_endpoint": given.get("database_url"),
        "valkey_endpoint": given.get("valkey_url") or given.get("redis_url"),
    }
    return {name: value for name, value in found.items() if _same_host(instead.get(name), value)}


def _host_only(value: str | None, port: str) -> str | None:
    """Drop what people paste along with a host name: blanks, and the service's port."""
    return None if value is None else value.strip().removesuffix(port)


def _same_host(url: SecretStr | str | None, endpoint: str) -> bool:
    """Whether a URL, if there is one, leads to this endpoint, as those of `workshop env` do."""
    text = url.get_secret_value() if isinstance(url, SecretStr) else url
    try:
        return not text or urlsplit(text).hostname == endpoint
    except ValueError:  # malformed, which is said when it is used
        return False


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return "••••••" if isinstance(value, SecretStr) else str(value)


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            message = f"no such setting. Known ones: {known}"
        if name:
            given = sources.get(name, "default")
            secret = name.endswith("_url")
            value = "" if secret or "input" not in problem else f"={problem['input']!r}"
            lines.append(f"{name.upper()}{value} (from {given}): {message}")
        else:
            lines.append(message)
    return "A setting is not usable. " + "; ".join(lines) + "."
