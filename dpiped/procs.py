"""Processes: who is who, who belongs to a run, and signals that can't hit a stranger.

Why: a pid alone names nobody. It is reused, and a daemon that signals a remembered pid after a
restart can kill somebody else's work. Here a process is pid + start time + boot id, every signal goes
through a pidfd that was checked against that identity, and a run's processes are found by what they
can't shed together: the marker in their environment, their session, their ancestry.

Sources: proc(5) for the fields of /proc/PID/stat, pidfd_open(2), prctl(2).

Known gap: a process that clears its environment and outlives both the launcher and a runner that was
SIGKILLed is found by nobody: the session of a dead leader proves nothing, since its number may be reused.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from msgspec import Struct

from dpiped.rundir import Identity
from dpiped.settings import RUN_MARKER

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PF_KTHREAD = 0x00200000
EXEC_TAKES = 0.05
EXEC_LOOK_EVERY = 0.001
LOOKS_AT_EMPTY = 6
"""A process that executes a program has no environment for a moment: 0.1 ms, on a busy machine longer."""
LOOKS_FOR_NOBODY = 3


class Process(Struct, frozen=True):
    """One line of /proc: enough to tell family and session. `zombie` has ended and waits for its parent."""

    pid: int
    parent: int
    session: int
    start: int
    zombie: bool


@cache
def boot_id() -> str:
    """This boot's id; start times of other boots mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def look(pid: int) -> Process | None:
    """The process that has this pid now, or None; also where it is another user's that may not be seen."""
    try:
        fields = _fields(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # The last one where /proc is mounted with hidepid.
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        start=int(fields[19]),
        zombie=fields[0] in (b"Z", b"X"),
    )


def _fields(pid: int) -> list[bytes]:
    """Those of /proc/PID/stat from the third on. Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_bytes()
    # The second field is the name in parentheses and may hold anything, parentheses and spaces too.
    return text[text.rindex(b")") + 2 :].split()


def identify(pid: int) -> Identity | None:
    """The identity to remember, or None if there is no such process."""
    found = look(pid)
    return Identity(pid, found.start, boot_id()) if found else None


def is_alive(who: Identity) -> bool:
    """True while exactly that process lives; a zombie has ended."""
    found = look(who.pid) if who.boot == boot_id() else None
    return found is not None and found.start == who.start and not found.zombie


def parent_of(who: Identity) -> int | None:
    """The pid of the process that made it or has inherited it; None if it is gone."""
    found = look(who.pid)
    return found.parent if found is not None and found.start == who.start else None


def open_pidfd(who: Identity) -> int | None:
    """A pidfd of exactly that process, or None if it is gone. The caller closes it."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return None
    # The pidfd pins whoever has the pid now; only then is the look at its start time conclusive.
    if is_alive(who):
        return fd
    os.close(fd)
    return None


def send(who: Identity, number: int) -> bool:
    """Signals that process, never another one that has its pid. False if it is gone.

    Raises PermissionError for one that is another user's, as one may be that a training has started by sudo.
    """
    fd = open_pidfd(who)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def all_processes() -> dict[int, Process]:
    """Everything that lives now, zombies left out."""
    with os.scandir("/proc") as entries:
        found = [look(int(entry.name)) for entry in entries if entry.name.isdigit()]
    return {process.pid: process for process in found if process and not process.zombie}


def members(run: str, runner: Identity | None, child: Identity | None) -> list[Identity]:
    """All living processes of a run but the runner: marked, in the child's session, or descendants.

    One that is born during the look, of a parent that ends meanwhile, is seen by the next one only.
    So there is none if several looks in a row find none.
    """
    looks = (_members(run, runner, child) for _ in range(LOOKS_FOR_NOBODY))
    return next(filter(None, looks), [])


def _members(run: str, runner: Identity | None, child: Identity | None) -> list[Identity]:
    living = all_processes()
    roots = {who.pid for who in (runner, child) if who and _same(living, who)}
    spared = {os.getpid(), runner.pid if runner and _same(living, runner) else 0}
    family = {
        pid
        for pid, process in living.items()
        if pid in roots or process.session in roots or _descends(pid, roots, living)
    }
    found = (family | _marked(living.keys() - family - spared, run)) - spared
    return [Identity(pid, living[pid].start, boot_id()) for pid in sorted(found)]


def marked(run: str) -> bool:
    """Is any process with the run's marker alive, the runner included?"""
    return bool(_marked(all_processes().keys() - {os.getpid()}, run))


def send_all(targets: Iterable[Identity], number: int) -> int:
    """Signals each; the number that were reached.

    Raises PermissionError where one may not be, once all others are.
    """
    reached, refused = 0, None
    for who in targets:
        try:
            reached += send(who, number)
        except PermissionError as error:
            refused = error
    if refused is not None:
        raise refused
    return reached


def reap(who: Identity | None) -> None:
    """A child of this process that has ended would be a zombie for as long as this one lives."""
    found = look(who.pid) if who is not None and who.boot == boot_id() else None
    if who is not None and found is not None and found.start == who.start and found.zombie:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(who.pid, os.WNOHANG)


def become_subreaper() -> None:
    """Orphaned descendants become this process's children, however often they fork."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """The kernel signals this process when the thread that spawned it ends."""
    _prctl(PR_SET_PDEATHSIG, number)


def keep_memory_private() -> None:
    """No core dump of this process, and no look into it or its environment by others of the same user.

    A program that it starts is as any other (the kernel sets it back); limits would be inherited.
    """
    _prctl(PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _same(living: dict[int, Process], who: Identity) -> bool:
    found = living.get(who.pid)
    return found is not None and found.start == who.start and who.boot == boot_id()


def _descends(pid: int, roots: set[int], living: dict[int, Process]) -> bool:
    seen: set[int] = set()
    while pid in living and pid not in seen:
        seen.add(pid)
        pid = living[pid].parent
        if pid in roots:
            return True
    return False


def _marked(pids: Iterable[int], run: str) -> set[int]:
    """Those with the run's marker in their environment."""
    marker = f"{RUN_MARKER}={run}".encode()
    found, unknown, looks = set(), set(pids), 0
    until = time.monotonic() + EXEC_TAKES
    while unknown:
        environments = {pid: _environment(pid) for pid in unknown}
        found |= {pid for pid, words in environments.items() if words and marker in words}
        unknown = {pid for pid, words in environments.items() if words == []}
        looks += 1
        if looks >= LOOKS_AT_EMPTY and (time.monotonic() > until or not any(map(_executes, unknown))):
            break
        if unknown:
            time.sleep(EXEC_LOOK_EVERY)
    return found


def _environment(pid: int) -> list[bytes] | None:
    """Empty also for a moment, while a program is executed; None for what is gone or another user's."""
    try:
        return [word for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if word]
    except OSError:
        return None


def _executes(pid: int) -> bool:
    """Has it no place for an environment yet? The kernel gives it one last."""
    try:
        fields = _fields(pid)
    except OSError:
        return False
    # A thread of the kernel never has one.
    return fields[0] not in (b"Z", b"X") and fields[48] == b"0" and not int(fields[6]) & PF_KTHREAD
