"""Kill a small run again and again, and see that it ends in the same bits: `python -m tests.soak [KILLS]`.

It is killed while it starts, between steps and while it saves, at random, and resumed each time; then it is compared
with the same run left alone. Takes about 8 seconds a kill, and ends with exit status 1 where a bit differs.
"""

import os
import random
import sys
import tempfile
import time

from tests import test_resume


def main(kills: int) -> int:
    """Print each kill, and what became of the run."""
    options = [*test_resume.TINY, "--steps", str(15 * kills + 30)]
    choose = random.Random()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        whole = test_resume.start(*options, "--name", "whole")
        whole.communicate()
        for kill in range(kills):
            begun = os.path.exists("runs/killed/config.toml")
            process = test_resume.start(*(["--resume"] if begun else options), "--name", "killed", "--quiet")
            if choose.random() < 0.2:
                time.sleep(choose.uniform(0.5, 5))  # while it starts
            else:
                steps = test_resume.steps_of("killed")
                while process.poll() is None and test_resume.steps_of("killed") == steps:
                    time.sleep(0.002)
                time.sleep(choose.uniform(0, 0.4))  # among steps and saves
            process.kill()
            error = process.communicate()[1]
            print(
                f"kill {kill + 1}: {test_resume.steps_of('killed')} steps recorded {error.strip()[-200:]}", flush=True
            )
        last = test_resume.start("--resume", "--name", "killed", "--quiet")
        print(last.communicate()[1], end="")
        same = test_resume.outcome("killed") == test_resume.outcome("whole")
        print("the same bits" if same else "NOT the same bits", *test_resume.outcome("killed")[:2])
        return int(not same)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
