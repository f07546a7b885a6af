"""`workshop aws`: the services on AWS, from the shell."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from workshop_lib.aws import DEFAULT_NAME
from workshop_lib.options import as_json, yes

if TYPE_CHECKING:
    from workshop_lib.aws.console import Console

which_stack = click.option("--stack", default=DEFAULT_NAME, show_default=True, metavar="NAME",
                           help="the CloudFormation stack")  # fmt: skip
where = click.option("--region", metavar="REGION",
                     help="where  [default: AWS_REGION, or boto3's configuration]")  # fmt: skip
parameters = click.option("-p", "given", multiple=True, metavar="NAME=VALUE",
                          help="a parameter of the template; may be repeated. Those left out keep "
                               "their values")  # fmt: skip


@click.group()
def aws() -> None:
    """Make, look at and delete the services on AWS.

    By CloudFormation.
    """


@aws.command("deploy")
@which_stack
@where
@parameters
@yes
@click.option("--no-function", is_flag=True, help="leave the load-test function as it is")
@click.option("--no-host-files", is_flag=True,
              help="do not put what the notebook host installs into the bucket")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="only show what would change, and what it costs")
@click.option("--linked", is_flag=True,
              help="in both Regions of the database that `workshop aws link` made")  # fmt: skip
def aws_deploy(*, no_function: bool, no_host_files: bool, linked: bool, **options: Any) -> None:
    """Make or change the workshop's stack, after showing what changes and what it costs.

    Doing it again changes nothing. Ctrl-C ends the command, not what AWS has begun.
    """
    from workshop_lib.aws.deploy import Wish, deploy
    from workshop_lib.aws.link import deploy_linked

    wish = Wish(**options, function=not no_function, host_files=not no_host_files)
    sys.exit(0 if (deploy_linked if linked else deploy)(wish, _console()) else 1)


@aws.command("link")
@click.option("--regions", required=True, metavar="REGION,REGION", help="the two with a side each")
@click.option("--witness", required=True, metavar="REGION",
              help="the third, which keeps a part of the log")  # fmt: skip
@click.option("--stack", default=DEFAULT_NAME, show_default=True, metavar="NAME",
              help="the workshop's stack; the database's is NAME-database")  # fmt: skip
@parameters
@yes
@click.option("--with-workshop", is_flag=True,
              help="then do `workshop aws deploy --linked`")  # fmt: skip
def aws_link(*, regions: str, with_workshop: bool, **options: Any) -> None:
    """Make one database over two Regions; where it was interrupted, it goes on.

    A parameter (-p) is one of cloudformation/multi-region.yaml, for both sides.
    """
    from workshop_lib.aws.deploy import Wish
    from workshop_lib.aws.link import deploy_linked, link

    both = tuple(regions.split(","))
    done = link(both, **options, console=_console())
    if done and with_workshop:
        wish = Wish(stack=options["stack"], region=both[0], yes=options["yes"])
        done = deploy_linked(wish, _console())
    sys.exit(0 if done else 1)


@aws.command("status")
@which_stack
@where
@as_json
def aws_status(stack: str, region: str | None, as_json: bool) -> None:
    """Show the stack: its state, outputs, what it costs, what failed; exit code 1 if none is there.

    Account numbers are not shown.
    """
    from workshop_lib.aws.status import read_status, show_status

    if as_json:
        found, _, _ = read_status(stack, region)
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        show_status(stack, region, _console())


@aws.command("destroy")
@which_stack
@where
@yes
@click.option("--linked", is_flag=True,
              help="in both Regions, and the database over them")  # fmt: skip
def aws_destroy(stack: str, region: str | None, *, yes: bool, linked: bool) -> None:
    """Delete the stack with all its data, and say what remains."""
    from workshop_lib.aws.destroy import destroy

    done = destroy(stack, region, console=_console(), yes=yes, linked=linked)
    sys.exit(0 if done else 1)


def _console() -> Console:
    """The terminal, and the time."""
    import time

    from workshop_lib.aws.console import Console

    return Console(
        say=click.echo,
        ask=click.confirm,
        interactive=sys.stdin.isatty(),
        sleep=time.sleep,
        clock=time.monotonic,
    )
