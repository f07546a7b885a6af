"""CloudFormation at work: a line for each resource that is done, and what failed first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.aws.console import Console
from workshop_lib.aws.plain import advise, explain, passes_by_itself
from workshop_lib.errors import AwsError, redact

POLL_S = 4.0
SLOWEST_POLL_S = 30.0
MOST_IN_VAIN = 20
"""So many questions in a row may go unanswered before we give up looking."""
QUIET_S = 60.0
"""After so long without news, what is being waited for is said."""
DONE = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"}
WORDS = {
    "CREATE_COMPLETE": "made",
    "UPDATE_COMPLETE": "changed",
    "DELETE_COMPLETE": "deleted",
    "DELETE_SKIPPED": "kept",
    "IMPORT_COMPLETE": "taken over",
}
TURNS = {
    "ROLLBACK_IN_PROGRESS": "It failed. CloudFormation takes back what it made:",
    "UPDATE_ROLLBACK_IN_PROGRESS": "It failed. CloudFormation goes back to what was before:",
}
_STACK = "AWS::CloudFormation::Stack"
_AS_A_CONSEQUENCE = ("cancelled", "canceled")


@dataclass(frozen=True, slots=True)
class Failure:
    """A resource that failed by itself, not because another one had."""

    resource: str
    kind: str
    reason: str

    def lines(self) -> list[str]:
        """What happened, in CloudFormation's words, and what helps."""
        advice = advise(self.reason)
        said = f"  {self.resource} ({self.kind}): {self.reason}"
        return [said, *([f"    what to do: {advice}"] if advice else [])]


@dataclass(slots=True)
class Watch:
    """A stack that is being worked on.

    Attributes:
        client: of CloudFormation in its Region.
        stack_id: also names it when it is gone.
        label: what a line of it begins with, where there are several.
        status: the one it ended with; empty while it goes on.
        failures: in the order in which they happened.
        kept: resources that were not deleted because the template says so.

    """

    client: Any
    stack_id: str
    label: str = ""
    status: str = ""
    failures: list[Failure] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _begun: dict[str, datetime] = field(default_factory=dict)
    _last: dict[str, str] = field(default_factory=dict)
    _start: datetime | None = None

    @property
    def ok(self) -> bool:
        """Whether it ended as was wanted."""
        return self.status in DONE

    @property
    def waiting_for(self) -> list[str]:
        """The resources that are being worked on."""
        return list(self._begun)

    def skip_past(self, *, of: Collection[str] = ()) -> None:
        """Leave out the events there are, which belong to what went on before.

        Args:
            of: statuses of the stack with which what goes on now has begun, if it has.

        Raises:
            AwsError: CloudFormation does not answer.

        """
        begun = not of
        try:
            for event in self._events():
                if begun:
                    self._seen = {event["EventId"]}  # older ones are not looked at any more
                    return
                begun = _of_stack(event) and event.get("ResourceStatus") in of
        except (ClientError, BotoCoreError) as error:
            raise explain(error, "read the stack's events") from None

    def news(self) -> list[str]:
        """The lines of what happened since the last time.

        Raises:
            ClientError, BotoCoreError: CloudFormation does not answer.

        """
        fresh = []
        for event in self._events():
            if event["EventId"] in self._seen:
                break
            fresh.append(event)
        self._seen |= {event["EventId"] for event in fresh}
        return [line for event in reversed(fresh) for line in self._tell(event)]

    def _events(self) -> Iterator[Mapping[str, Any]]:
        """The newest first, a page at a time."""
        request = {"StackName": self.stack_id}
        while True:
            page = self.client.describe_stack_events(**request)
            yield from page["StackEvents"]
            if not page.get("NextToken"):
                return
            request["NextToken"] = page["NextToken"]

    def _tell(self, event: Mapping[str, Any]) -> Iterator[str]:
        name, status = event["LogicalResourceId"], event.get("ResourceStatus", "")
        if not status:
            return  # what hooks of the account say
        self._start = self._start or event["Timestamp"]
        if _of_stack(event):
            if status in TURNS:
                yield self.label + TURNS[status]
            elif not status.endswith("_IN_PROGRESS"):
                self.status = status
            return
        if status.endswith("_IN_PROGRESS"):
            self._begun.setdefault(name, event["Timestamp"])
            self._last.pop(name, None)
            return
        self._begun.pop(name, None)
        if self._last.get(name) == status:
            return  # CloudFormation says some things twice
        self._last[name] = status
        kind = event["ResourceType"]
        after = _elapsed(event["Timestamp"] - self._start)
        reason = redact(event.get("ResourceStatusReason") or "no reason is given")
        if status.endswith("_FAILED"):
            yield f"{after:>6}  {self.label}FAILED   {name} ({kind})"
            if not any(word in reason.lower() for word in _AS_A_CONSEQUENCE):
                self.failures.append(Failure(name, kind, reason))
            return
        if status == "DELETE_SKIPPED":
            self.kept.append(f"{name} ({kind})")
        yield f"{after:>6}  {self.label}{WORDS.get(status, status):<8} {name} ({kind})"


def follow(watches: Sequence[Watch], console: Console) -> bool:
    """Show what happens until all have ended.

    Returns:
        Whether all ended as was wanted.

    Raises:
        AwsError: CloudFormation has stopped answering; it goes on by itself.

    """
    pause, in_vain, last_word = POLL_S, 0, console.clock()
    while running := [watch for watch in watches if not watch.status]:
        for watch in running:
            try:
                lines = watch.news()
            except (ClientError, BotoCoreError) as error:
                in_vain += 1
                if in_vain > MOST_IN_VAIN or not passes_by_itself(error):
                    raise AwsError(
                        f"{explain(error, 'look how far it is')} CloudFormation goes on by itself."
                    ) from None
                pause = min(2 * pause, SLOWEST_POLL_S)
                continue
            in_vain, pause = 0, POLL_S
            for line in lines:
                console.say(line)
                last_word = console.clock()
        if console.clock() - last_word >= QUIET_S:
            names = [watch.label + name for watch in running for name in watch.waiting_for]
            console.say(f"        … waiting for {_some(names)}")
            last_word = console.clock()
        if not all(watch.status for watch in watches):
            console.sleep(pause)
    return all(watch.ok for watch in watches)


def _of_stack(event: Mapping[str, Any]) -> bool:
    """Whether it is about the stack itself, and not about a stack inside it."""
    mine: bool = event.get("PhysicalResourceId") == event["StackId"]
    return mine and event.get("ResourceType") == _STACK


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if names else "CloudFormation"


def _elapsed(span: Any) -> str:
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    return f"{minutes}:{seconds:02}"
