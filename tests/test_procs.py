"""Identities, signals and the members of a run, with real small processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from dpiped import procs
from dpiped.rundir import Identity
from dpiped.settings import RUN_MARKER
from tests.helpers import require, wait_until

RUN = f"20260304-050607-{os.getpid():x}"
OTHER = RUN + "0"
SLEEPER = "import time; time.sleep(60)"
CLEARED = {name: value for name, value in os.environ.items() if name != RUN_MARKER}
MARKED = CLEARED | {RUN_MARKER: RUN}

FAMILY = """
import os, sys, time
kind, note = sys.argv[1:]
bare = {"PATH": os.environ["PATH"]}
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
if os.fork() == 0:
    if kind == "setsid":
        os.setsid()
    elif kind == "double":
        os.setsid()
        if os.fork():
            os._exit(0)
    open(note + ".part", "w").write(str(os.getpid()))
    os.rename(note + ".part", note)
    os.execve(sys.executable, sleep, bare if kind == "cleared" else os.environ)
time.sleep(60)
"""


HIDDEN = """
import os, subprocess
from dpiped import procs
mine = subprocess.Popen(["sleep", "60"], user=65534, group=65534)
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
print(procs.look(1), procs.identify(mine.pid).pid == mine.pid)
mine.kill()
"""
ANOTHERS = """
import os, signal, subprocess, sys
from dpiped import procs
theirs = subprocess.Popen(["sleep", "60"])
mine = subprocess.Popen(["sleep", "60"], user=65534, group=65534)
known = [procs.identify(each.pid) for each in (theirs, mine)]
if os.fork() == 0:
    os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
    try:
        procs.send_all(known, signal.SIGKILL)
    except PermissionError:
        os._exit(7)
    os._exit(8)
print(os.waitstatus_to_exitcode(os.wait()[1]), os.waitstatus_to_exitcode(os.wait()[1]), theirs.poll())
theirs.kill()
"""
HIDE = 'mount -t proc -o hidepid=1 proc /proc && "$@"; exit $?'


RESTLESS = """
i=0
while [ $i -lt 500 ]; do i=$((i + 1)); done
exec /bin/sh -c "$0" "$0"
"""

DAEMONS = """
import os, time
until = time.monotonic() + 6
while time.monotonic() < until:
    time.sleep(0.05)
    if os.fork():
        os._exit(0)
"""


@contextmanager
def spawned(
    command: Sequence[str] = (sys.executable, "-c", SLEEPER),
    env: dict[str, str] = CLEARED,
    new_session: bool = False,
) -> Iterator[Identity]:
    """A real child; ended and reaped afterwards."""
    process = subprocess.Popen(command, env=env, start_new_session=new_session)
    try:
        yield known(process.pid)
    finally:
        process.kill()
        process.wait()


def known(pid: int) -> Identity:
    found = procs.identify(pid)
    assert found is not None
    return found


@contextmanager
def family(kind: str, folder: Path, env: dict[str, str]) -> Iterator[tuple[Identity, Identity]]:
    """A leader and one descendant of the given kind; both ended afterwards."""
    note = folder / "pid"
    with spawned((sys.executable, "-c", FAMILY, kind, str(note)), env, new_session=True) as leader:
        pid = int(wait_until(lambda: note.exists() and note.read_text(), "the descendant's pid") or "0")
        descendant = known(pid)
        try:
            yield leader, descendant
        finally:
            procs.send(descendant, signal.SIGKILL)
            wait_until(lambda: not procs.is_alive(descendant), "the descendant's end")


def test_a_process_is_itself_and_has_the_parent_and_session_it_has() -> None:
    own = procs.look(os.getpid())
    assert own is not None
    assert (own.parent, own.session, own.zombie) == (os.getppid(), os.getsid(0), False)
    assert procs.is_alive(known(os.getpid()))
    assert os.getpid() in procs.all_processes()


def test_a_name_with_parentheses_and_spaces_does_not_mislead(tmp_path: Path) -> None:
    odd = tmp_path / ") R 1 (x"
    odd.symlink_to(Path("/bin/sleep").resolve())
    with spawned((str(odd), "60")) as child:
        wait_until(lambda: b") R 1 (x" in Path(f"/proc/{child.pid}/stat").read_bytes(), "exec")
        found = procs.look(child.pid)
        assert found is not None
        assert (found.parent, found.session) == (os.getpid(), os.getsid(0))
        assert procs.is_alive(child)


def test_a_zombie_is_not_alive_and_is_no_member() -> None:
    process = subprocess.Popen((sys.executable, "-c", SLEEPER), env=MARKED)
    child = known(process.pid)
    try:
        process.kill()
        wait_until(lambda: (look := procs.look(child.pid)) is not None and look.zombie, "a zombie")
        assert not procs.is_alive(child)
        assert child.pid not in procs.all_processes()
        assert not procs.send(child, signal.SIGCONT)
        assert procs.members(RUN, None, child) == []
    finally:
        process.wait()
    assert procs.look(child.pid) is None
    assert procs.identify(child.pid) is None
    assert not procs.send(child, signal.SIGCONT)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another-boot"}])
def test_who_has_a_recycled_pid_is_never_signalled(change: dict[str, int | str]) -> None:
    with spawned() as child:
        stranger = msgspec.structs.replace(child, **change)
        assert not procs.is_alive(stranger)
        assert procs.open_pidfd(stranger) is None
        assert not procs.send(stranger, signal.SIGKILL)
        assert procs.send_all([stranger, stranger], signal.SIGKILL) == 0
        assert procs.is_alive(child)
        assert procs.members(RUN, stranger, stranger) == []


def test_a_signal_reaches_exactly_the_process_that_is_meant() -> None:
    with spawned() as one, spawned() as other:
        assert procs.send(one, signal.SIGKILL)
        wait_until(lambda: not procs.is_alive(one), "its end")
        assert procs.is_alive(other)
        assert procs.send_all([one, other], signal.SIGKILL) == 1
        wait_until(lambda: not procs.is_alive(other), "the other's end")


def test_handles_are_not_leaked() -> None:
    with spawned() as child:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            procs.send(child, signal.SIGCONT)
            procs.send(msgspec.structs.replace(child, start=1), signal.SIGCONT)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("kind", ["plain", "setsid", "double"])
def test_marked_descendants_are_found_wherever_they_went(tmp_path: Path, kind: str) -> None:
    with family(kind, tmp_path, MARKED) as (leader, descendant), spawned() as unrelated:
        wanted = sorted([leader, descendant], key=lambda who: who.pid)
        assert procs.members(RUN, None, leader) == wanted
        assert procs.members(RUN, None, None) == wanted, "by their mark alone"
        assert procs.marked(RUN)
        assert not procs.marked(OTHER) and not procs.marked(RUN[:-1])
        assert unrelated not in procs.members(RUN, None, leader)
    assert procs.members(RUN, None, leader) == []
    assert not procs.marked(RUN)


@pytest.mark.parametrize("kind", ["plain", "setsid", "cleared"])
def test_unmarked_descendants_are_found_by_ancestry(tmp_path: Path, kind: str) -> None:
    with family(kind, tmp_path, CLEARED) as (leader, descendant), spawned() as unrelated:
        found = procs.members(RUN, None, leader)
        assert found == sorted([leader, descendant], key=lambda who: who.pid)
        assert unrelated not in found
        assert procs.members(RUN, None, None) == []


def test_a_process_left_in_the_session_of_a_living_child_is_found(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f'(env -i sleep 60 & echo $! > "{note}.part"; mv "{note}.part" "{note}"); exec sleep 60'
    with spawned(("/bin/sh", "-c", script), new_session=True) as child:
        orphan = known(int(wait_until(lambda: note.exists() and note.read_text(), "the orphan's pid") or "0"))
        try:
            wait_until(
                lambda: (look := procs.look(orphan.pid)) is not None and look.parent != child.pid, "orphaned"
            )
            assert procs.members(RUN, None, child) == sorted([child, orphan], key=lambda who: who.pid)
        finally:
            procs.send(orphan, signal.SIGKILL)


def test_the_runner_is_spared_and_its_children_are_not() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
    with spawned((sys.executable, "-c", script), MARKED, new_session=True) as runner:
        found = wait_until(lambda: procs.members(RUN, runner, None), "the runner's child")
        try:
            assert len(found) == 1
            assert found[0] != runner
            look = procs.look(found[0].pid)
            assert look is not None and look.parent == runner.pid
            assert procs.marked(RUN)
        finally:
            procs.send_all(found, signal.SIGKILL)


def test_whoever_asks_is_never_a_member() -> None:
    me = known(os.getpid())
    with spawned(env=MARKED) as child:
        assert me not in procs.members(RUN, None, None)
        assert me not in procs.members(RUN, me, child)


def test_orphans_come_to_a_subreaper_and_die_with_parent_kills() -> None:
    script = (
        "import os, signal, subprocess, sys, time\n"
        "from dpiped import procs\n"
        "procs.become_subreaper()\n"
        "out = subprocess.check_output(['sh', '-c', 'sleep 60 > /dev/null & echo $!'])\n"
        "orphan = procs.look(int(out))\n"
        "print(orphan.parent == os.getpid(), flush=True)\n"
        "os.kill(orphan.pid, 9); os.waitpid(orphan.pid, 0)\n"
        "middle = os.fork()\n"
        "if middle == 0:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        procs.die_with_parent()\n"
        "        os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)\n"
        "    time.sleep(60)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "True\n"
        child = known(int(process.stdout.readline()))
        look = procs.look(child.pid)
        assert look is not None
        assert procs.send(known(look.parent), signal.SIGKILL)
        wait_until(lambda: not procs.is_alive(child), "the child's end with its parent")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_that_executes_one_program_after_the_other_is_found_at_any_moment() -> None:
    with spawned(("/bin/sh", "-c", RESTLESS, RESTLESS), MARKED) as restless:
        wait_until(lambda: restless in procs.members(RUN, None, None), "the process")
        missed = sum(restless not in procs.members(RUN, None, None) for _ in range(200))
        unmarked = sum(not procs.marked(RUN) for _ in range(100))
    assert (missed, unmarked) == (0, 0)


def test_a_process_that_makes_itself_a_daemon_again_and_again_is_found_at_any_moment() -> None:
    with spawned((sys.executable, "-c", DAEMONS), MARKED, new_session=True):
        wait_until(lambda: procs.members(RUN, None, None), "the first one")
        until = time.monotonic() + 4
        missed = looks = 0
        while time.monotonic() < until:
            looks += 1
            missed += not procs.members(RUN, None, None)
    assert looks > 20 and missed == 0
    wait_until(lambda: not procs.marked(RUN), "the end of the last one")


def test_other_users_processes_that_may_not_be_seen_are_passed_over() -> None:
    """A /proc mounted with hidepid=1, as on machines that several people share."""
    require(os.geteuid() == 0, "only root can mount /proc and become another user")
    words = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", HIDE, "sh"]
    done = subprocess.run(
        [*words, sys.executable, "-c", HIDDEN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert (done.returncode, done.stdout) == (0, "None True\n"), done.stderr


def test_one_that_may_not_be_signalled_keeps_no_other_from_it() -> None:
    """A rank that was started by sudo, say."""
    require(os.geteuid() == 0, "only root can become another user")
    done = subprocess.run(
        [sys.executable, "-c", ANOTHERS], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    assert done.returncode == 0 and sorted(done.stdout.split()) == ["-9", "7", "None"], done.stderr
