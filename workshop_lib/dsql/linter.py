"""AWS's own linter for Aurora DSQL, `dsql-lint`, asked about a piece of SQL."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workshop_lib.errors import WorkshopError

PROGRAM = Path(sys.executable).with_name("dsql-lint")
LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that DSQL would refuse.

    Attributes:
        rule: the linter's name for it.
        line: where, from 1.
        message: what is wrong.
        suggestion: what to write instead.

    """

    rule: str
    line: int
    message: str
    suggestion: str


class Findings(list[Finding]):
    """What the linter found; empty if DSQL would accept all of it, as far as the text shows."""

    def __repr__(self) -> str:
        if not self:
            return "dsql-lint finds nothing to object to."
        return "\n".join(f"line {f.line}: {f.message} {f.suggestion}" for f in self)


def lint(statements: str) -> Findings:
    """What Aurora DSQL would refuse, by the text alone: nothing is sent to a server.

    Args:
        statements: SQL, several statements separated by semicolons. It does not know everything:
            for example not MERGE, and not how many rows a statement will change.

    Raises:
        WorkshopError: the linter is not installed or could not be run.

    """
    try:
        done = subprocess.run(
            [str(PROGRAM), "--format", "json", "-"],
            input=statements,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )
        (report,) = json.loads(done.stdout)["files"]
        if report["error"]:
            raise ValueError(report["error"])
        found = report["diagnostics"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise WorkshopError(
            f"dsql-lint could not be run: {error}. `make venv` installs it; does your platform "
            "have it?"
        ) from None
    return Findings(
        Finding(f["rule"], f["line"], f["message"], f.get("suggestion") or "") for f in found
    )
