"""`workshop aws`: the services on AWS, from the shell."""

from __future__ import annotations

import sys
from typing import Any

import click

from workshop_lib.options import yes

which_stack = click.option("--stack", default="cache-aside-workshop", show_default=True,
                           metavar="NAME", help="the CloudFormation stack")  # fmt: skip
where = click.option("--region", envvar="AWS_REGION", metavar="REGION",
                     help="where  [default: AWS_REGION, or boto3's configuration]")  # fmt: skip


def _parameters(_context: Any, _option: Any, words: tuple[str, ...]) -> dict[str, str]:
    if wrong := [word for word in words if "=" not in word]:
        raise click.BadParameter(f"{wrong[0]!r} is not of the form NAME=VALUE.")
    return dict(word.split("=", 1) for word in words)


parameters = click.option("-p", "given", multiple=True, metavar="NAME=VALUE", callback=_parameters,
                          help="a parameter of the template; may be repeated. Those left out keep "
                               "their values")  # fmt: skip


def _aws() -> Any:
    from workshop_lib.aws import stacks  # noqa: PLC0415 -- it takes boto3, which takes a while

    return stacks


@click.group()
def aws() -> None:
    """Create, show and delete the services on AWS, by CloudFormation."""


@aws.command("deploy")
@which_stack
@where
@parameters
@yes
@click.option("--no-function", is_flag=True, help="leave the load-test function as it is")
@click.option("--dry-run", is_flag=True, help="only show what would change, and what it costs")
def aws_deploy(*, no_function: bool, **options: Any) -> None:
    """Create or change the workshop's stack, after showing what changes and what it costs.

    Repeating it changes nothing. Ctrl-C ends the command, not what AWS has begun. In a Region with
    a database that `workshop aws link` created, a new stack uses that database.
    """
    sys.exit(0 if _aws().deploy(**options, function=not no_function) else 1)


@aws.command("grant")
@which_stack
@where
def aws_grant(**options: Any) -> None:
    """Create the database user of the stack's host and function, as admin.

    The host's `get-workshop` runs it. Repeating it changes nothing.
    """
    _aws().grant(**options)


@aws.command("link")
@click.option("--regions", required=True, metavar="REGION,REGION", help="the two with an endpoint")
@click.option("--witness", required=True, metavar="REGION",
              help="the third Region, which keeps part of the log")  # fmt: skip
@which_stack
@parameters
@yes
def aws_link(*, regions: str, **options: Any) -> None:
    """Create one database over two Regions; repeated, it continues where it was interrupted.

    Its stack in each Region is called NAME-database, after the workshop's NAME. A parameter (-p) is
    one of cloudformation/multi-region.yaml, for both sides.
    """
    sys.exit(0 if _aws().link(regions.split(","), **options) else 1)


@aws.command("status")
@which_stack
@where
def aws_status(**options: Any) -> None:
    """Show the stack's state, age, cost so far, outputs and price; no account numbers."""
    _aws().status(**options)


@aws.command("destroy")
@which_stack
@where
@yes
@click.option("--linked", is_flag=True, help="in both Regions, and the database over them")
def aws_destroy(**options: Any) -> None:
    """Delete the stack with all its data, and say what remains."""
    sys.exit(0 if _aws().destroy(**options) else 1)
