"""A short drill: random rounds of killing, freezing and opening; `make soak` goes through more."""

import subprocess
import sys

from workshop_lib.paths import CHECKOUT


def test_after_random_rounds_of_killing_everything_is_there_and_nothing_is_left():
    words = [sys.executable, str(CHECKOUT / "scripts" / "drill.py"), "--rounds", "4", "--seed", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 rounds: no row, object or process was lost or left" in done.stdout
