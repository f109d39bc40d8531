"""Stands where `deepspeed` stands, and begins its work only when it is told to end.

With `rank` in LATE it launches its rank then and dies, as if the signal had met it in the middle of a launch.
With `helper` it first tidies up, by a helper that takes a while. The file DONE tells that it came to that.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

RANK = "import time; time.sleep(600)"
HELPER = "import pathlib, sys, time; time.sleep(1.5); pathlib.Path(sys.argv[1]).touch()"


def end(number: int, _: FrameType | None) -> NoReturn:
    done = os.environ["DONE"]
    if os.environ["LATE"] == "rank":
        subprocess.Popen([sys.executable, "-c", RANK])
        Path(done).touch()
        os._exit(0)
    subprocess.run([sys.executable, "-c", HELPER, done], check=False)
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, end)
Path(os.environ["READY"]).touch()
while True:
    time.sleep(60)
