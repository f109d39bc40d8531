"""The runner: parent and reaper of one training, and nothing else.

Why: the training must outlive the daemon. So its parent is this small process in a session of its own,
which holds no socket, no pipe and no state but the run directory: it starts the launcher with the log
file as stdout and stderr, waits, ends what is left of the process tree, and writes the exit record
last. Whoever finds that record knows that nothing of the run lives any more.

`deepspeed` passes on an exit code of 0 when its own launcher was SIGKILLed and leaves the ranks
running. As child subreaper the runner inherits them and ends them.

Known gap: a runner that is SIGKILLed itself leaves the training without a reaper; the daemon spawns
another one with `--adopt`, which can end the tree but never learns the exit code.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from dpiped import procs, rundir
from dpiped.errors import RunDamaged
from dpiped.rundir import Concluded, Exit, Identity, Launched, Spec, StopAsked

GRACE_BY_ITSELF = 3.0
"""Seconds in which what outlives the launcher may end by itself (a rank's loader takes some)."""
GRACE_AFTER_TERM = 10.0
LOOK_EVERY = 0.1
CLAIM_TIMEOUT = 5.0
RECORD_TIMEOUT = 5.0


def main(run_dir: Path, adopt: bool = False) -> int:
    """Runs what `spec.json` says, to its end. Returns the runner's own exit code."""
    if not _claimed(run_dir):
        print(f"another process has {run_dir}", file=sys.stderr)
        return 1
    procs.become_subreaper()
    spec = rundir.read(run_dir, Spec)
    if spec is None:
        print(f"{run_dir} has no spec.json", file=sys.stderr)
        return 1
    if rundir.read(run_dir, Concluded) is not None:
        print(f"{run_dir} was given up before this runner came", file=sys.stderr)
        return 1
    if adopt:
        _Run(run_dir, spec).follow()
    elif rundir.read(run_dir, StopAsked) is not None:
        # Nothing was launched, so there is no code and no error: the stop says it all.
        _Run(run_dir, spec).record_nothing_launched()
    else:
        _Run(run_dir, spec).launch_and_wait()
    return 0


def _claimed(run_dir: Path) -> bool:
    """A daemon that looks at the run holds it for a moment; another runner does for good."""
    until = time.monotonic() + CLAIM_TIMEOUT
    while rundir.claim(run_dir) is None:
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_EVERY)
    return True


class _Run:
    def __init__(self, run_dir: Path, spec: Spec) -> None:
        self.run_dir = run_dir
        self.spec = spec
        self.me = procs.identify(os.getpid())
        self.child: Identity | None = None
        self.told: int | None = None
        # A handler, not SIG_IGN: the training would inherit that one.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)

    def record_nothing_launched(self) -> None:
        self._record(Exit(None, None, time.time()))

    def launch_and_wait(self) -> None:
        try:
            log = os.open(self.run_dir / rundir.LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._record(Exit(None, None, time.time(), error=f"its log can't be written: {error.strerror}"))
            return
        try:
            child = subprocess.Popen(
                self.spec.argv,
                cwd=self.spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            self._record(Exit(None, None, time.time(), error=f"can't be launched: {error}"))
            return
        if self.told is not None:
            # When that came there may have been nobody yet to pass it on to.
            _signal(self._members(), self.told)
        try:
            self._record_launch(child.pid)
        except OSError as error:
            self._give_up(f"that it was launched can't be recorded: {error.strerror}")
            return
        status = _wait_for(child.pid)
        leftovers = self._end_leftovers()
        # On some file systems a full disk is told only here; the exit record has its room.
        with contextlib.suppress(OSError):
            os.fsync(log)
        code = os.waitstatus_to_exitcode(status)
        self._record_exit(code if code >= 0 else None, -code if code < 0 else None, leftovers)

    def _give_up(self, why: str) -> None:
        """Nobody could follow a training that is not recorded: it is ended before it has done anything."""
        while (left := self._members()) or _reap():
            _signal(left, signal.SIGKILL)
            time.sleep(LOOK_EVERY)
            _reap()
        self._record(Exit(None, None, time.time(), error=why))

    def follow(self) -> None:
        """Takes over a training whose runner was killed: waits for it by identity, then tidies up."""
        launched = self._launched()
        self.child = launched.child if launched else self._find_child()
        if self.child is not None:
            assert self.me is not None
            # Whoever comes next must take this process for the runner, not for a part of the training.
            try:
                at = launched.at if launched else time.time()
                rundir.write(self.run_dir, Launched(self.me, self.child, at))
            except OSError as error:
                print(f"that another runner took over can't be recorded: {error}", file=sys.stderr)
        while self.child and procs.is_alive(self.child):
            time.sleep(LOOK_EVERY)
        self._record_exit(None, None, self._end_leftovers())

    def _launched(self) -> Launched | None:
        """With a record that can't be read, nothing tells what has to be waited for but what lives."""
        try:
            return rundir.read(self.run_dir, Launched)
        except RunDamaged as error:
            print(error.message, file=sys.stderr)
        while self._members():
            time.sleep(LOOK_EVERY)
            _reap()
        return None

    def _find_child(self) -> Identity | None:
        """The launcher, if the runner was killed before it could record it: it leads a session of its own."""
        leaders = []
        for who in self._members():
            found = procs.look(who.pid)
            if found is not None and found.start == who.start and found.session == found.pid:
                leaders.append(who)
        return min(leaders, key=lambda who: who.start, default=None)

    def _record_launch(self, pid: int) -> None:
        # Until it is waited for, the child's pid can't be reused, so this look is at the child.
        self.child = procs.identify(pid)
        assert self.me is not None and self.child is not None
        rundir.write(self.run_dir, Launched(self.me, self.child, time.time()))

    def _record_exit(self, code: int | None, number: int | None, leftovers: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self._record(Exit(code, number, time.time(), peak_memory_bytes=peak or None, leftovers=leftovers))

    def _record(self, exit_: Exit) -> None:
        """Tries for some seconds; then the daemon reads on standard error why there is no record."""
        until = time.monotonic() + RECORD_TIMEOUT
        while True:
            try:
                rundir.write(self.run_dir, exit_)
                return
            except OSError as error:
                if time.monotonic() > until:
                    ended = exit_.error or f"code {exit_.code}, signal {exit_.signal}"
                    print(f"{ended}; the end can't be recorded: {error}", file=sys.stderr)
                    return
            time.sleep(LOOK_EVERY)

    def _end_leftovers(self) -> int:
        """Waits, then SIGTERM, then SIGKILL until nobody is left. The number that had to be ended."""
        begun = time.monotonic()
        ended: set[Identity] = set()
        termed: set[Identity] = set()
        _reap()
        # A look misses one that is born during it, of a parent that ends meanwhile. But then that one is a
        # child of this process, the subreaper.
        while (left := self._members()) or _reap():
            now = time.monotonic()
            term_at, kill_at = self._deadlines(begun)
            if now >= kill_at:
                _signal(left, signal.SIGKILL)
                ended.update(left)
            elif now >= term_at:
                _signal([who for who in left if who not in termed], signal.SIGTERM)
                termed.update(left)
                ended.update(left)
            time.sleep(LOOK_EVERY)
            _reap()
        return len(ended)

    def _deadlines(self, begun: float) -> tuple[float, float]:
        """When to send SIGTERM and SIGKILL. A stop under way has sent the first and sets the second."""
        try:
            asked = rundir.read(self.run_dir, StopAsked)
        except RunDamaged:
            asked = None
        if asked is not None and asked.how == "term" and asked.boot == procs.boot_id():
            kill_at = max(asked.deadline + GRACE_BY_ITSELF, begun)
            return kill_at, kill_at
        return begun + GRACE_BY_ITSELF, begun + GRACE_BY_ITSELF + GRACE_AFTER_TERM

    def _members(self) -> list[Identity]:
        return procs.members(self.spec.run, self.me, self.child)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        """Somebody signalled the runner: the training is what they want to end."""
        if number != signal.SIGHUP:
            self.told = number
            _signal(self._members(), number)


def _wait_for(pid: int) -> int:
    """Reaps whatever ends until `pid` does; its wait status."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return status


def _reap() -> bool:
    """Leaves no zombie to init. Does a child live?"""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _signal(targets: Iterable[Identity], number: int) -> None:
    """Each that may be signalled; the daemon says it of one that may not."""
    with contextlib.suppress(PermissionError):
        procs.send_all(targets, number)
