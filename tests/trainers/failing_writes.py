"""The real daemon or runner, whose n-th write fails: as on a full or read-only disk, at every place in turn.

    failing_writes.py daemon PLAN          failing_writes.py runner PLAN python's own arguments ...

The file PLAN holds `WHO NUMBER ERRNO once|on`: of WHO (daemon or runner), from the NUMBER-th on, one write or
each fails with ERRNO. Writes are what Python tells its audit hooks below the folder of PLAN: files opened for
writing, made, renamed, removed, linked. Every new content of PLAN begins to count anew; without the file,
nothing fails. What was counted stands in PLAN.WHO.
"""

import os
import sys
from pathlib import Path
from typing import Any

from dpiped import __main__, runner

who, plan = sys.argv[1], sys.argv[2]
FOLDER = str(Path(plan).parent)
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
counted, last, busy = 0, "", False


def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = arguments
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writing) and str(path).startswith(FOLDER) and not str(path).startswith(plan)
    return event in WRITES and any(str(argument).startswith(FOLDER) for argument in arguments)


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    global counted, last, busy
    if busy or not is_write(event, arguments):
        return
    busy = True
    try:
        text = Path(plan).read_text() if Path(plan).exists() else ""
        if text != last:
            counted, last = 0, text
        if not text:
            return
        whom, number, code, often = text.split()[:4]
        if whom != who:
            return
        counted += 1
        Path(f"{plan}.{who}").write_text(f"{counted} {event} {arguments[:2]}\n")
        if counted == int(number) or (often == "on" and counted > int(number)):
            raise OSError(int(code), os.strerror(int(code)), str(arguments[0]))
    finally:
        busy = False


if who == "runner":
    # As `python -E -P -m dpiped runner ...` would be.
    sys.argv = ["dpiped", *sys.argv[sys.argv.index("runner", 3) :]]
    runner.RECORD_TIMEOUT = 0.3
else:
    # What the daemon starts the runner with.
    python = Path(FOLDER, "bin/python-with-failing-writes")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} runner {plan} "$@"\n')
    python.chmod(0o755)
    sys.executable = str(python)
    sys.argv = ["dpiped"]

sys.addaudithook(hook)
sys.exit(__main__.main())
