"""`workshop aws link`: one database over two Regions, from two stacks that name each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workshop_lib.aws import change_sets
from workshop_lib.aws.clients import Clients
from workshop_lib.aws.console import Console
from workshop_lib.aws.deploy import Wish, deploy_in, failure_lines
from workshop_lib.aws.following import Watch, follow
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.prerequisites import check_template, enter, look_at_stack, sign_in
from workshop_lib.aws.regions import check_span
from workshop_lib.aws.sides import PEER, database_stack, other_region, region_of
from workshop_lib.aws.stacks import Stack, check_name, find_stack, place_of
from workshop_lib.aws.template import Template, parse_given, read_template
from workshop_lib.errors import AwsError

NETWORKS = ("10.0.0.0/16", "10.1.0.0/16")
"""Two Regions that are to be connected some day need different addresses."""
FROM_SIDE = {
    "ClusterArn": "DSQLClusterArn",
    "ClusterVpcEndpoint": "ClusterVpcEndpoint",
    "ClusterVpcEndpointServiceName": "ClusterVpcEndpointServiceName",
}
"""Which parameter of workshop.yaml is which output of multi-region.yaml."""


@dataclass(frozen=True, slots=True)
class _Side:
    """A Region, and its stack if it is there."""

    clients: Clients
    stack: Stack | None

    @property
    def region(self) -> str:
        return self.clients.region

    @property
    def arn(self) -> str:
        return self.stack.outputs.get("DSQLClusterArn", "") if self.stack else ""

    @property
    def peer(self) -> str:
        return self.stack.parameters.get(PEER, "") if self.stack else ""

    @property
    def made(self) -> bool:
        return self.stack is not None and not self.stack.planned


@dataclass(frozen=True, slots=True)
class _Step:
    """What becomes of the stack of a side."""

    side: _Side
    parameters: Mapping[str, str]

    @property
    def client(self) -> Any:
        return self.side.clients.stacks


def link(
    regions: tuple[str, ...],
    witness: str,
    *,
    stack: str,
    console: Console,
    given: tuple[str, ...] = (),
    yes: bool = False,
) -> bool:
    """Make both sides and link them, after a yes; what is done already is not done again.

    Both stacks are made without a peer first; then both learn of each other at the same time, since
    either update may have to wait for the other (Aurora DSQL User Guide, "Configuring Aurora DSQL
    clusters using AWS CloudFormation").

    Args:
        regions: the two.
        witness: the third Region.
        stack: the workshop's stack, after which those of the database are called.
        console: whom to tell and ask.
        given: parameters of the template for both sides, of the form NAME=VALUE.
        yes: go on without asking.

    Returns:
        Whether they are linked.

    Raises:
        AwsError: the Regions do not go together, a stack cannot be changed, or AWS does not answer.
        KeyboardInterrupt: passed on, after it was said what AWS does meanwhile.

    """
    if len(regions) != 2:
        raise AwsError(f"--regions takes two, such as us-east-1,us-east-2, and got {len(regions)}.")
    doubt = check_span((regions[0], regions[1]), witness)
    check_name(stack)
    name = database_stack(stack)
    template = read_template("multi-region")
    extra = _extra(given, template)
    sides = [_look(enter(console, region), name, template, console) for region in regions]
    _check(sides, witness)
    if doubt:
        console.say(f"WARNING: {doubt}")
    if _linked(sides) and not any(_differs(side, extra) for side in sides):
        console.say(f"Already linked: {name} in {regions[0]} and {regions[1]}.")
        return True
    for line in _plan(sides, name, witness):
        console.say(line)
    if not console.confirm(yes=yes):
        console.say("Nothing was changed.")
        return False
    alone = {"WitnessRegion": witness, **extra}
    new = [_Step(side, alone) for side in sides if not side.made]
    if not _take(new, name, template, console, "Making"):
        return False
    sides = [replace(side, stack=find_stack(side.clients.stacks, name)) for side in sides]
    peers = {sides[0].region: sides[1].arn, sides[1].region: sides[0].arn}
    steps = [_Step(side, {PEER: peers[side.region], **extra}) for side in sides]
    if not _take(steps, name, template, console, "Linking"):
        return False
    console.say(
        f"\nLinked: one database in {regions[0]} and {regions[1]}, with {witness} as the witness. "
        "Next, the workshop in both:\n"
        f"  workshop aws deploy --linked {place_of(stack, regions[0])}\n"
        f"To delete all of it: workshop aws destroy --linked {place_of(stack, regions[0])}"
    )
    return True


def deploy_linked(wish: Wish, console: Console) -> bool:
    """Deploy the workshop in both Regions of a linked database.

    Args:
        wish: what is wanted; its Region is one of the two.
        console: whom to tell and ask.

    Returns:
        Whether both are as they were wanted.

    Raises:
        AwsError: the database is not linked, or as `deploy`.

    """
    check_name(wish.stack)
    parse_given(wish.given, read_template("workshop"))
    name = database_stack(wish.stack)
    first = sign_in(console, wish.region)
    here = find_stack(first.stacks, name)
    if here is None or not (there := other_region(here)):
        raise AwsError(
            f"There is no linked database {name} in {first.region}. `workshop aws link` makes it."
        )
    second = enter(console, there)
    sides = [_Side(first, here), _Side(second, find_stack(second.stacks, name))]
    if not _linked(sides):
        raise AwsError(
            f"The database {name} is linked in {first.region} but not in {there}. Finish it: "
            f"`workshop aws link --regions {first.region},{there} "
            f"--witness {here.parameters['WitnessRegion']}`."
        )
    taken = [_network(side, wish.stack) for side in sides]
    for index, side in enumerate(sides):
        parameters = _names(side)
        named = any(word.startswith("VpcCidr=") for word in wish.given)
        if not taken[index] and not named:
            taken[index] = next(one for one in NETWORKS if one not in taken)
            parameters["VpcCidr"] = taken[index]
        console.say(f"\n--- {side.region}")
        if not deploy_in(side.region, wish, console, **parameters):
            return False
    return True


def _extra(given: tuple[str, ...], template: Template) -> dict[str, str]:
    extra = parse_given(given, template)
    for name in (PEER, "WitnessRegion"):
        if name in extra:
            raise AwsError(f"{name} follows from --regions and --witness; leave it out.")
    return extra


def _look(clients: Clients, name: str, template: Template, console: Console) -> _Side:
    check_template(console, clients, template)
    return _Side(clients, look_at_stack(console, clients, name, template))


def _check(sides: list[_Side], witness: str) -> None:
    """Refuse to make something else of sides that are there."""
    regions = {side.region for side in sides}
    for side in sides:
        if side.stack is None or not side.made:
            continue
        has = side.stack.parameters.get("WitnessRegion", witness)
        if has != witness:
            raise AwsError(
                f"{side.stack.name} in {side.region} has {has} as its witness, which cannot be "
                f"changed to {witness}. Give --witness {has}, or take another --stack."
            )
        if side.peer and region_of(side.peer) not in regions:
            raise AwsError(
                f"{side.stack.name} in {side.region} is linked with {region_of(side.peer)} "
                "already. Take another --stack."
            )


def _linked(sides: list[_Side]) -> bool:
    one, other = sides
    return bool(one.arn and other.arn) and (one.peer, other.peer) == (other.arn, one.arn)


def _differs(side: _Side, extra: Mapping[str, str]) -> bool:
    has = side.stack.parameters if side.stack else {}
    return any(has.get(name) != value for name, value in extra.items())


def _network(side: _Side, workshop: str) -> str:
    """The addresses of the workshop in a side's Region; empty if it is not there yet."""
    stack = find_stack(side.clients.stacks, workshop)
    return stack.parameters.get("VpcCidr", "") if stack and not stack.planned else ""


def _names(side: _Side) -> dict[str, str]:
    """What workshop.yaml has to be told of a side's database.

    Raises:
        AwsError: the database has no names yet.

    """
    outputs = side.stack.outputs if side.stack else {}
    if all(outputs.get(output) for output in FROM_SIDE.values()):
        return {parameter: outputs[output] for parameter, output in FROM_SIDE.items()}
    # They were not known when the stack was made; the database itself knows them by now.
    with plainly(f"ask the database in {side.region} for its names"):
        found = side.clients.dsql.get_vpc_endpoint_service_name(
            identifier=side.arn.rsplit("/", 1)[1]
        )
    if not found.get("clusterVpcEndpoint"):
        raise AwsError(
            f"The database in {side.region} has no name inside a VPC yet. Wait some minutes, then "
            "try again."
        )
    return {
        "ClusterArn": side.arn,
        "ClusterVpcEndpoint": found["clusterVpcEndpoint"],
        "ClusterVpcEndpointServiceName": found["serviceName"],
    }


def _plan(sides: list[_Side], name: str, witness: str) -> list[str]:
    lines = [f"\nOne database over {sides[0].region} and {sides[1].region}, witness {witness}:"]
    lines += [f"  make {name} in {side.region}" for side in sides if not side.made]
    lines += ["  change its parameters"] if _linked(sides) else ["  link the two"]
    lines.append(
        "It costs nothing an hour. Writes are charged in both Regions, storage in each, and data "
        "that crosses a border by the GB."
    )
    return lines


def _take(steps: list[_Step], name: str, template: Template, console: Console, what: str) -> bool:
    """Take steps in both Regions at the same time. Returns whether all went well."""
    ready: list[tuple[_Step, change_sets.ChangeSet]] = []
    try:
        for step in steps:
            change_set = change_sets.prepare(
                step.client, name, template, step.parameters, before=step.side.stack,
                console=console,
            )  # fmt: skip
            ready += [(step, change_set)] if change_set else []
    except BaseException:
        for step, change_set in ready:
            was_planned = step.side.stack is not None
            change_sets.discard(step.client, change_set, was_planned=was_planned)
        raise
    if not ready:
        return True
    console.say(f"{what} in {' and '.join(step.side.region for step, _ in ready)}:")
    watches = [_begin(step, change_set) for step, change_set in ready]
    try:
        ok = follow(watches, console)
    except KeyboardInterrupt:
        console.say(
            "\nAWS goes on by itself. Give the same command again when it is done: it does what is "
            "left."
        )
        raise
    for (step, _), watch in zip(ready, watches, strict=True):
        if not watch.ok:
            console.say(f"\n{step.side.region}:")
            for line in failure_lines(watch, place_of(name, step.side.region)):
                console.say(line)
    return ok


def _begin(step: _Step, change_set: change_sets.ChangeSet) -> Watch:
    watch = Watch(step.client, change_set.stack_id, f"{step.side.region}  ")
    watch.skip_past()
    change_sets.carry_out(step.client, change_set)
    return watch
