"""The CloudFormation templates of this repository, as far as they can be judged without AWS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, cast

import yaml

from workshop_lib.errors import AwsError
from workshop_lib.paths import CHECKOUT, display_path

FOLDER = CHECKOUT / "cloudformation"
MOST_DIRECT = 51_200
"""Bytes of a template that is sent along with a request (CloudFormation User Guide, "Quotas")."""
Kind: TypeAlias = Literal["workshop", "multi-region"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a template, and the form it is held to.

    Attributes:
        name: in the template.
        default: None where one has to be given.
        number: whether it is a number.
        pattern: a regular expression for the whole of it; None for any.
        allowed: the values to choose from; empty for any.
        least, most: limits of a number.
        rule: the form in words.

    """

    name: str
    default: str | None
    number: bool
    pattern: str | None
    allowed: tuple[str, ...]
    least: float | None
    most: float | None
    rule: str

    def problem(self, value: str) -> str:
        """What is wrong with a value, as it fits behind the value; empty if nothing is."""
        if self.allowed and value not in self.allowed:
            return f"is none of {', '.join(self.allowed)}"
        if self.number and not self.allowed:
            try:
                number = float(value)
            except ValueError:
                return "is not a number"
            if not (self.least or 0) <= number <= (self.most or number):
                return f"is not between {self.least:,.0f} and {self.most:,.0f}"
        if self.pattern and not re.fullmatch(self.pattern, value):
            return f"is not {self.rule}" if self.rule else f"does not match {self.pattern}"
        return ""


@dataclass(frozen=True, slots=True)
class Template:
    """A template.

    Attributes:
        name: of its file, without the ending.
        body: its text, as CloudFormation gets it.
        description: what it says of itself.
        parameters: by name.
        resources: by name, as they stand there, functions in the long form.
        conditions: the same.
        prices: Metadata.CostPerHour: USD an hour for one of a thing; empty if it has none.

    """

    name: str
    body: str
    description: str
    parameters: Mapping[str, Parameter]
    resources: Mapping[str, Any]
    conditions: Mapping[str, Any]
    prices: Mapping[str, float]

    @property
    def headline(self) -> str:
        """How its description begins, by which stacks made from it are known."""
        return re.split(r"[:.]", self.description, maxsplit=1)[0]

    def defaults(self) -> dict[str, str]:
        """The parameters that need not be given."""
        return {p.name: p.default for p in self.parameters.values() if p.default is not None}

    def made_with(self, values: Mapping[str, str]) -> dict[str, Any]:
        """The resources that a stack with these parameters has."""
        return {
            name: one
            for name, one in self.resources.items()
            if "Condition" not in one or self._holds({"Condition": one["Condition"]}, values)
        }

    def _holds(self, test: Any, values: Mapping[str, str]) -> bool:
        ((function, given),) = test.items()
        if function == "Condition":
            return self._holds(self.conditions[given], values)
        if function == "Fn::Not":
            return not self._holds(given[0], values)
        if function == "Fn::And":
            return all(self._holds(one, values) for one in given)
        if function == "Fn::Or":
            return any(self._holds(one, values) for one in given)
        first, second = (values[v["Ref"]] if isinstance(v, dict) else str(v) for v in given)
        return first == second


@cache
def read_template(name: Kind) -> Template:
    """Read a template of this repository.

    Raises:
        AwsError: it cannot be read, or is too large to be sent along with a request.

    """
    path = FOLDER / f"{name}.yaml"
    try:
        body = path.read_text(encoding="utf-8")
        found = _Loader(body).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AwsError(f"The template {display_path(path)} cannot be read: {error}.") from None
    size = len(body.encode())
    if size > MOST_DIRECT:
        raise AwsError(
            f"The template {display_path(path)} has {size:,} bytes, and CloudFormation takes "
            f"{MOST_DIRECT:,} without a bucket. Shorten it, comments first."
        )
    return Template(
        name=name,
        body=body,
        description=str(found["Description"]),
        parameters={key: _parameter(key, one) for key, one in found["Parameters"].items()},
        resources=found["Resources"],
        conditions=found.get("Conditions", {}),
        prices={
            key: float(usd) for key, usd in found.get("Metadata", {}).get("CostPerHour", {}).items()
        },
    )


def parse_given(words: tuple[str, ...], template: Template) -> dict[str, str]:
    """What `-p NAME=VALUE` says, held to the template's own rules before anything is sent.

    Raises:
        AwsError: a word of another form, an unknown parameter, or a value that it does not take.

    """
    given: dict[str, str] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise AwsError(f"-p {word!r} is not of the form NAME=VALUE.")
        if name not in template.parameters:
            known = ", ".join(sorted(template.parameters))
            raise AwsError(
                f"The template {template.name}.yaml has no parameter {name!r}. It has: {known}."
            )
        if problem := template.parameters[name].problem(value):
            problems.append(f"{name}={value!r} {problem}")
        given[name] = value
    if problems:
        raise AwsError(f"A parameter is not usable: {'; '.join(problems)}.")
    return given


def _parameter(name: str, given: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=name,
        default=str(given["Default"]) if "Default" in given else None,
        number=given["Type"] == "Number",
        pattern=given.get("AllowedPattern"),
        allowed=tuple(map(str, given.get("AllowedValues", ()))),
        least=given.get("MinValue"),
        most=given.get("MaxValue"),
        rule=given.get("ConstraintDescription", ""),
    )


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads the short form of functions, `!Ref Name`, as the long one.

    Ten times as fast where PyYAML was built with libyaml.
    """


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    if isinstance(node, yaml.MappingNode):
        return {name: loader.construct_mapping(node, deep=True)}
    return {name: loader.construct_scalar(cast("yaml.ScalarNode", node))}


_Loader.add_multi_constructor("!", _function)
