"""Watching CloudFormation at work: every line once, the cause of a failure, and patience."""

from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from workshop_lib.aws.deploy import failure_lines
from workshop_lib.aws.following import MOST_IN_VAIN, Watch, follow
from workshop_lib.errors import AwsError

STACK = "arn:aws:cloudformation:us-east-1:123456789012:stack/workshop/1"
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
VPC, CACHE = "AWS::EC2::VPC", "AWS::ElastiCache::ServerlessCache"


class Events:
    """CloudFormation's list of a stack's events, which grows with every time it is asked.

    A step of the script is what has happened since: events, or an error instead of an answer.
    """

    def __init__(self, *script, before=(), page=100):
        self.known, self.script, self.page = list(before), list(script), page
        self.asked = 0

    def describe_stack_events(self, StackName, NextToken="0"):  # noqa: N803 -- boto3's names
        assert StackName == STACK
        if NextToken == "0":
            self.asked += 1
            step = self.script.pop(0) if self.script and self.asked > 1 else []
            if isinstance(step, Exception):
                raise step
            self.known += step
        newest = self.known[::-1]
        start = int(NextToken)
        end = start + self.page
        more = {"NextToken": str(end)} if end < len(newest) else {}
        return {"StackEvents": newest[start:end], **more}


def event(name, status, kind=VPC, *, after=0, reason=None):
    event.count += 1
    own = name == "workshop"
    return {
        "EventId": f"{name}-{event.count}",
        "StackId": STACK,
        "LogicalResourceId": name,
        "PhysicalResourceId": STACK if own else f"{name}-1",
        "ResourceType": "AWS::CloudFormation::Stack" if own else kind,
        "ResourceStatus": status,
        "Timestamp": NOON + timedelta(seconds=after),
        **({"ResourceStatusReason": reason} if reason else {}),
    }


event.count = 0


def throttled():
    answer = {
        "Error": {"Code": "Throttling", "Message": "Rate exceeded"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    return ClientError(answer, "DescribeStackEvents")


def watch(talk, *script, **options):
    found = Watch(Events(*script, **options), STACK)
    found.skip_past()
    ok = follow([found], talk.console)
    assert ok == found.ok
    return found


def test_each_resource_gets_one_line_with_the_time_since_the_beginning(talk):
    done = watch(
        talk,
        [event("workshop", "CREATE_IN_PROGRESS"), event("Vpc", "CREATE_IN_PROGRESS", after=2)],
        [event("Vpc", "CREATE_IN_PROGRESS", after=3, reason="Resource creation Initiated")],
        [event("Vpc", "CREATE_COMPLETE", after=14), event("Vpc", "CREATE_COMPLETE", after=14)],
        [event("Cache", "CREATE_COMPLETE", CACHE, after=301)],
        [event("workshop", "CREATE_COMPLETE", after=302)],
    )
    assert done.status == "CREATE_COMPLETE"
    assert talk.lines == [
        "  0:14  made     Vpc (AWS::EC2::VPC)",
        "  5:01  made     Cache (AWS::ElastiCache::ServerlessCache)",
    ]


def test_news_of_more_than_one_page_come_in_order(talk):
    names = [f"R{number}" for number in range(7)]
    watch(
        talk,
        [
            event("workshop", "CREATE_IN_PROGRESS"),
            *(event(name, "CREATE_COMPLETE", after=i) for i, name in enumerate(names)),
            event("workshop", "CREATE_COMPLETE", after=9),
        ],
        page=2,
    )
    assert [line.split()[2] for line in talk.lines] == names


def test_the_cause_of_a_failure_is_told_and_not_what_was_cancelled_for_it(talk):
    denied = (
        "User: arn:aws:iam::123456789012:user/ada is not authorized to perform: "
        "iam:CreateServiceLinkedRole"
    )
    done = watch(
        talk,
        [event("workshop", "CREATE_IN_PROGRESS"), event("Vpc", "CREATE_IN_PROGRESS")],
        [
            event("Cache", "CREATE_FAILED", CACHE, after=62, reason=denied),
            event("Vpc", "CREATE_FAILED", after=63, reason="Resource creation cancelled"),
            event("workshop", "ROLLBACK_IN_PROGRESS", after=64),
        ],
        [event("Vpc", "DELETE_COMPLETE", after=70)],
        [event("workshop", "ROLLBACK_COMPLETE", after=71)],
    )
    assert not done.ok
    assert talk.lines == [
        "  1:02  FAILED   Cache (AWS::ElastiCache::ServerlessCache)",
        "  1:03  FAILED   Vpc (AWS::EC2::VPC)",
        "It failed. CloudFormation takes back what it made:",
        "  1:10  deleted  Vpc (AWS::EC2::VPC)",
    ]
    end, head, cause, advice, then = failure_lines(done, "--region us-east-1")
    assert end == "\nIt ended as ROLLBACK_COMPLETE."
    assert head == "What failed first:"
    assert cause == (
        "  Cache (AWS::ElastiCache::ServerlessCache): User: arn:aws:iam::…:user/ada is not "
        "authorized to perform: iam:CreateServiceLinkedRole"
    )
    assert advice == (
        "    what to do: The first cluster or cache of an account needs a service-linked role, "
        "which you may not create. Ask for iam:CreateServiceLinkedRole, or have an administrator "
        "run `aws iam create-service-linked-role --aws-service-name elasticache.amazonaws.com` "
        "(dsql.amazonaws.com for the database)."
    )
    assert then == (
        "Nothing usable is there. Put right what failed, delete the rest "
        "(`workshop aws destroy --region us-east-1`), and deploy again."
    )


def test_an_update_that_failed_leaves_the_stack_as_it_was_and_says_so(talk):
    done = watch(
        talk,
        [event("workshop", "UPDATE_IN_PROGRESS")],
        [
            event("Vpc", "UPDATE_FAILED", after=3, reason="The maximum number has been reached."),
            event("workshop", "UPDATE_ROLLBACK_IN_PROGRESS", after=4),
            event("workshop", "UPDATE_ROLLBACK_COMPLETE", after=9),
        ],
    )
    assert "goes back to what was before" in talk.text
    said = failure_lines(done, "--region us-east-1")
    assert "under Service Quotas" in said[3]
    assert said[-1] == "The stack is as it was before. Put right what failed, and deploy again."


def test_being_throttled_and_cut_off_is_waited_out_and_ever_more_slowly(talk):
    cut_off = EndpointConnectionError(endpoint_url="https://cloudformation")
    done = watch(
        talk,
        [event("workshop", "CREATE_IN_PROGRESS")],
        throttled(),
        throttled(),
        cut_off,
        [event("workshop", "CREATE_COMPLETE", after=9)],
    )
    assert done.ok
    assert talk.slept == [4.0, 8.0, 16.0, 30.0]
    assert talk.lines == []


def test_whoever_is_cut_off_for_good_hears_that_it_goes_on_by_itself(talk):
    errors = [throttled() for _ in range(MOST_IN_VAIN + 1)]
    with pytest.raises(AwsError, match=r"Rate exceeded.*CloudFormation goes on by itself\.$"):
        watch(talk, *errors)


def test_an_expired_session_is_not_asked_again(talk):
    answer = {"Error": {"Code": "ExpiredToken", "Message": "The security token is expired"}}
    with pytest.raises(AwsError, match=r"Your session with AWS has ended.*goes on by itself"):
        watch(talk, ClientError(answer, "DescribeStackEvents"))
    assert talk.slept == []


def test_two_stacks_are_watched_at_the_same_time(talk):
    watches = []
    for region, steps in {"us-east-1": 2, "us-east-2": 1}.items():
        script = [[]] * (steps - 1)
        start = event("workshop", "UPDATE_IN_PROGRESS")
        end = [event("Cluster", "UPDATE_COMPLETE"), event("workshop", "UPDATE_COMPLETE")]
        watches.append(Watch(Events([start], *script, end), STACK, f"{region}  "))
        watches[-1].skip_past()
    assert follow(watches, talk.console)
    assert talk.lines == [
        "  0:00  us-east-2  changed  Cluster (AWS::EC2::VPC)",
        "  0:00  us-east-1  changed  Cluster (AWS::EC2::VPC)",
    ]
