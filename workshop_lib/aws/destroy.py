"""`workshop aws destroy`: what goes is said before, what stays afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.aws import DEFAULT_NAME
from workshop_lib.aws.clients import Clients
from workshop_lib.aws.console import Console
from workshop_lib.aws.following import Watch, follow
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.prerequisites import enter, sign_in
from workshop_lib.aws.sides import database_stack, other_region
from workshop_lib.aws.stacks import (
    Stack,
    check_name,
    check_ours,
    find_stack,
    list_ours,
    place_of,
    resources_of,
)
from workshop_lib.errors import AwsError

DELETING = "DELETE_IN_PROGRESS"


@dataclass(frozen=True, slots=True)
class Target:
    """A stack that is to go, and the clients of its Region."""

    clients: Clients
    stack: Stack

    @property
    def place(self) -> str:
        """How a command says which stack it is."""
        return place_of(self.stack.name, self.clients.region)


def destroy(
    name: str = DEFAULT_NAME,
    region: str | None = None,
    *,
    console: Console,
    yes: bool = False,
    linked: bool = False,
) -> bool:
    """Delete a stack, after a yes, and say what remains.

    A side of a database over two Regions goes together with the other side, because neither can go
    alone.

    Args:
        name: of the stack.
        region: None for the configured one.
        console: whom to tell and ask.
        yes: go on without asking.
        linked: the workshop in both Regions and then its database, which `workshop aws link` made.

    Returns:
        Whether all is gone that was to go; also where nothing was there.

    Raises:
        AwsError: it is not ours, it is protected, or AWS does not answer.
        KeyboardInterrupt: passed on, after it was said what AWS does meanwhile.

    """
    check_name(name)
    clients = sign_in(console, region)
    rounds = _rounds(clients, name, console, linked=linked)
    if not any(rounds):
        console.say(f"There is no stack {name} in {clients.region}; nothing to delete.")
        _tell_others(clients, console)
        return True
    for target in (target for one in rounds for target in one):
        _check(target)
    console.say("\nThis deletes, for good:")
    for target in (target for one in rounds for target in one):
        for line in _what_goes(target):
            console.say(line)
    if not console.confirm(yes=yes):
        console.say("Nothing was deleted.")
        return False
    ok = True
    for one in rounds:
        ok = ok and _delete(one, console)
    return ok


def _rounds(clients: Clients, name: str, console: Console, *, linked: bool) -> list[list[Target]]:
    """What has to go, and what of it at the same time."""
    if not linked:
        stack = find_stack(clients.stacks, name)
        if stack is None:
            return []
        if not stack.planned and check_ours(stack) == "multi-region":
            return [_sides(clients, name, console)]
        return [[Target(clients, stack)]]
    sides = _sides(clients, database_stack(name), console)
    regions = {target.clients.region: target.clients for target in sides} or {
        clients.region: clients
    }
    found = [(there, find_stack(there.stacks, name)) for there in regions.values()]
    return [[Target(there, stack) for there, stack in found if stack], sides]


def _sides(clients: Clients, name: str, console: Console) -> list[Target]:
    """The stacks of a database over two Regions that are there: this one and its peer."""
    here = find_stack(clients.stacks, name)
    if here is None:
        return []
    found = [Target(clients, here)]
    if there := other_region(here):
        other = enter(console, there)
        if stack := find_stack(other.stacks, name):
            found.append(Target(other, stack))
    return found


def _check(target: Target) -> None:
    stack, place = target.stack, target.place
    if stack.planned:
        return
    kind = check_ours(stack)
    if stack.in_progress and stack.status not in {DELETING, "CREATE_IN_PROGRESS"}:
        raise AwsError(
            f"CloudFormation is at work on {stack.name} in {stack.region} ({stack.status}). Wait "
            f"until it is done (`workshop aws status {place}`), then try again."
        )
    if stack.guarded:
        raise AwsError(
            f"The stack {stack.name} in {stack.region} is protected from being deleted. If it may "
            f"go: `aws cloudformation update-termination-protection --no-enable-termination-"
            f"protection --stack-name {stack.name} --region {stack.region}`."
        )
    if stack.parameters.get("DeletionProtection") == "true" and stack.status != DELETING:
        how = (
            f"`workshop aws deploy {place} -p DeletionProtection=false`"
            if kind == "workshop"
            else "`workshop aws link … -p DeletionProtection=false` with its Regions"
        )
        raise AwsError(
            f"The database of {stack.name} in {stack.region} is protected from being deleted. If "
            f"it may go with all its tables: {how}, then try again. Nothing was deleted."
        )


def _what_goes(target: Target) -> Iterator[str]:
    stack, clients = target.stack, target.clients
    if stack.planned:
        yield f"  {stack.name} in {stack.region}, which exists on paper only"
        return
    there = [
        one
        for one in resources_of(clients.stacks, stack)
        if one["ResourceStatus"] != "DELETE_COMPLETE"
    ]
    yield f"  {stack.name} in {stack.region}: {len(there)} resources"
    kinds = {one["ResourceType"]: one for one in there}
    if "AWS::S3::Bucket" in kinds and (bucket := stack.outputs.get("BucketName")):
        yield f"    the bucket with {_count(clients, bucket)} objects"
    if "AWS::DSQL::Cluster" in kinds:
        yield "    the database with all its tables"
    elif stack.parameters.get("ClusterArn"):
        yield "    not the database, which is not this stack's"
    if "AWS::ElastiCache::ServerlessCache" in kinds:
        yield "    the cache with all it holds"
    if "AWS::EC2::Instance" in kinds:
        yield "    the notebook host with what was written on it"


def _count(clients: Clients, bucket: str) -> str:
    try:
        pages = clients.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return f"{sum(page.get('KeyCount', 0) for page in pages):,}"
    except (ClientError, BotoCoreError):
        return "all its"  # it is only to be told


def _delete(targets: Sequence[Target], console: Console) -> bool:
    """Delete stacks at the same time. Returns whether they are gone."""
    watches = []
    for target in targets:
        if target.stack.planned:  # nothing of it has happened that could be watched
            with plainly(f"delete the stack {target.stack.name}"):
                target.clients.stacks.delete_stack(StackName=target.stack.id)
            console.say(f"{target.stack.name} in {target.stack.region} is deleted.")
            continue
        label = f"{target.clients.region}  " if len(targets) > 1 else ""
        watch = Watch(target.clients.stacks, target.stack.id, label)
        if target.stack.status == DELETING:
            watch.skip_past(of={DELETING})
        else:
            watch.skip_past()
            with plainly(f"delete the stack {target.stack.name}"):
                target.clients.stacks.delete_stack(StackName=target.stack.id)
        watches.append((target, watch))
    try:
        ok = follow([watch for _, watch in watches], console)
    except KeyboardInterrupt:
        places = " and ".join(f"`workshop aws status {target.place}`" for target in targets)
        console.say(f"\nAWS goes on deleting by itself. How far it is: {places}.")
        raise
    for target, watch in watches:
        for line in _what_remains(target, watch):
            console.say(line)
    for region in {target.clients.region: target.clients for target in targets}.values():
        _tell_others(region, console)
    return ok


def _what_remains(target: Target, watch: Watch) -> Iterator[str]:
    stack = target.stack
    if watch.ok:
        yield f"\n{stack.name} in {stack.region} is deleted. What remains of it:"
    else:
        yield f"\n{stack.name} in {stack.region} is {watch.status}: it is not gone, and may cost."
        yield "What could not be deleted:"
        for failure in watch.failures:
            yield from failure.lines()
        yield f"Put that right, then again: `workshop aws destroy {target.place}`."
        yield "What remains besides:"
    for one in watch.kept:
        yield f"  {one}, because the template keeps it"
    if snapshot := stack.parameters.get("CacheFinalSnapshot"):
        yield (
            f"  the cache's final snapshot {snapshot}, which costs until it is deleted: "
            f"`aws elasticache delete-serverless-cache-snapshot --region {stack.region} "
            f"--serverless-cache-snapshot-name {snapshot}`"
        )
    yield "  metrics, which CloudWatch keeps for 15 months without charge"


def _tell_others(clients: Clients, console: Console) -> None:
    others = [one for one in list_ours(clients.stacks) if one.status != DELETING]
    for one in others:
        console.say(
            f"Another stack of the workshop is in {clients.region}: {one.name} ({one.status}). "
            f"`workshop aws destroy {place_of(one.name, clients.region)}` deletes it."
        )
