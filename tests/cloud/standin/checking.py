"""The deployment checks, again and again in one process: each time as somebody else.

What `workshop check --json` does, without starting anew for each. Run as a program: for each line
of JSON on standard input, an environment, it answers with a line, the report.
"""

from __future__ import annotations

import json
import os
import sys

from workshop_lib.checks import check_deployment
from workshop_lib.stack import read_outputs


def main() -> None:
    for line in sys.stdin:
        os.environ.clear()
        os.environ.update(json.loads(line))
        read_outputs.cache_clear()
        report = check_deployment(workshop_linger_seconds=0.0)
        sys.stdout.write(f"{json.dumps(report.to_json())}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
