"""Stands where `deepspeed` stands: takes its flags, runs the script as one rank, passes on its exit code.

It starts in milliseconds, so that tests of the daemon need not wait for torch. Like the real one it has
no signal handlers and returns 0 when its child was killed by a signal (`result.returncode > 0` only).
"""

import subprocess
import sys

arguments = sys.argv[1:]
while arguments and arguments[0].startswith("--"):
    arguments.pop(0)
command = [sys.executable, "-u", arguments[0], "--local_rank=0", *arguments[1:]]
code = subprocess.run(command, check=False).returncode
sys.exit(max(code, 0))
