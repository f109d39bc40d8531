"""Who may use the socket, and which socket a client uses. As root: children become other users."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from dpipectl import trust
from dpiped import peers, private
from dpiped.errors import SettingsError, Unreachable
from dpiped.listening import Listening
from dpiped.locks import Lock
from dpiped.settings import ServiceManager
from tests.harness import BIN, Workspace
from tests.helpers import require, wait_until

NOBODY = 65534
GROUP = 61234
"""A group that has no name on this machine."""
AS_NOBODY = """
import os, sys
from dpiped import daemon, settings, signals
signals.hold()
loaded = settings.load()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(daemon.main(loaded, settings.load_service_manager()))
"""
"""The interpreter may lie where nobody else may read."""
ASK = """
import errno, os, socket, sys
from dpipectl.client import Client
from dpiped import messages
from dpiped.errors import Unreachable
path, user, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([]); os.setgid(group); os.setuid(user)
try:
    print(type(Client(path).call(messages.Hello())).__name__)
except Unreachable as error:
    print(error.message, error.hint)
"""


@pytest.fixture(autouse=True)
def root() -> None:
    require(os.geteuid() == 0, "only root can become another user")


def ask_as(path: str, user: int, group: int) -> str:
    """What a client of that user gets."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, path, str(user), str(group)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_root_and_the_group_are_answered(workspace: Workspace) -> None:
    path = workspace.root / "run/d.sock"
    workspace.root.chmod(0o755)
    workspace.start_daemon(DIFFPIPE_SOCKET_GROUP=str(GROUP))
    assert (mode(path), path.stat().st_gid) == (0o660, GROUP)
    assert (mode(path.parent), path.parent.stat().st_gid) == (0o750, GROUP)
    assert "Welcome" in ask_as(str(path), NOBODY, GROUP)
    assert "may not use the socket" in ask_as(str(path), NOBODY, NOBODY)
    # Somebody opens it to all.
    path.parent.chmod(0o755)
    path.chmod(0o666)
    assert "hangs up" in ask_as(str(path), NOBODY, NOBODY)
    assert "Welcome" in ask_as(str(path), NOBODY, GROUP)
    assert "Welcome" in ask_as(str(path), 0, 0)
    assert not [said for said in workspace.status()["notices"] if "STATE_DIR" in said or "GROUP" in said]


def test_without_a_group_only_the_owner_and_root(workspace: Workspace) -> None:
    """The owner is no root here."""
    workspace.root.chmod(0o755)
    for folder in ("run", "diffpipe", "logs"):
        (workspace.root / folder).mkdir(mode=0o700)
        os.chown(workspace.root / folder, NOBODY, NOBODY)
    path = workspace.root / "run/d.sock"
    command = [sys.executable, "-c", AS_NOBODY]
    with (workspace.root / "daemon.log").open("ab") as output:
        daemon = subprocess.Popen(
            command, env=workspace.env | {"HOME": "/nowhere"}, stdout=output, stderr=output
        )
    workspace.started.append(daemon)
    wait_until(
        lambda: "listening" in workspace.daemon_log() or daemon.poll() is not None, "the daemon listens"
    )
    assert daemon.poll() is None, workspace.daemon_log()
    path.parent.chmod(0o755)
    path.chmod(0o666)
    assert "Welcome" in ask_as(str(path), NOBODY, GROUP)
    assert "hangs up" in ask_as(str(path), NOBODY - 1, NOBODY)


def test_what_the_daemon_has_in_memory_is_dumped_to_no_file(workspace: Workspace) -> None:
    """A program that dumps its memory does so here."""
    shell = ["/bin/sh", "-c", 'ulimit -c unlimited && exec "$@"', "sh"]
    other = subprocess.Popen([*shell, "sleep", "60"], cwd=workspace.root)
    wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n", "another program")
    require(dumps(other), "this machine dumps no memory")
    assert not dumps(workspace.start_daemon(*shell, str(BIN / "dpiped")))


def dumps(process: "subprocess.Popen[bytes]") -> bool:
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return os.WCOREDUMP(status)


@pytest.mark.parametrize("inherited", [False, True], ids=["bound", "inherited"])
def test_the_installed_library_looks_at_the_peer(inherited: bool) -> None:
    """Also on a socket that was bound by another process."""
    folder = Path(tempfile.mkdtemp(prefix="dpiped-"))
    folder.chmod(0o755)
    path = folder / "s"
    context: zmq.Context[Any] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    peers.only_for(router, GROUP)
    listening = socket.socket(socket.AF_UNIX)
    if inherited:
        listening.bind(str(path))
        listening.listen()
        router.setsockopt(zmq.USE_FD, listening.fileno())
    router.bind(f"ipc://{path}")
    path.chmod(0o666)
    try:
        allowed = speak(str(path), NOBODY, GROUP)
        assert router.poll(10_000), "the group's member is heard"
        router.recv_multipart()
        strangers = speak(str(path), NOBODY, NOBODY)
        assert not router.poll(500), "a stranger is not"
        for process in (allowed, strangers):
            process.communicate(b"")
    finally:
        context.destroy(linger=0)
        listening.detach() if inherited else listening.close()
        shutil.rmtree(folder)


def speak(path: str, user: int, group: int) -> "subprocess.Popen[bytes]":
    """Sends a message and stays until its standard input is closed."""
    code = (
        f"import os, sys, zmq; os.setgroups([]); os.setgid({group}); os.setuid({user}); "
        "s = zmq.Context().socket(zmq.DEALER); s.linger = 0; "
        "s.connect('ipc://' + sys.argv[1]); s.send(b'x'); print('sent', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, path]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert made.stdout is not None and made.stdout.readline() == b"sent\n"
    return made


def test_a_directory_that_is_anothers_is_not_opened_and_that_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    peers.let_group_enter(tmp_path, GROUP, made=False)
    assert mode(tmp_path) == 0o700
    said = peers.kept_out(tmp_path, GROUP)
    assert said is not None and "DIFFPIPE_SOCKET_GROUP" in said and f"chgrp {GROUP}" in said
    # Ours by its name, as systemd makes it.
    ours = tmp_path / "dpiped"
    ours.mkdir(mode=0o700)
    peers.let_group_enter(ours, GROUP, made=False)
    assert mode(ours) == 0o750 and peers.kept_out(ours, GROUP) is None
    assert peers.kept_out(tmp_path, None) is None


# --- the client


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """As /tmp is: all may write to it."""
    made = Path(tempfile.mkdtemp(prefix="dpiped-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


def listen(path: Path, owner: int) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    os.chown(path, owner, owner)
    return made


def test_a_socket_that_anybody_may_have_put_there_is_not_used(
    workspace: Workspace, open_folder: Path
) -> None:
    mine, theirs = open_folder / "mine", open_folder / "theirs"
    for folder, owner in ((mine, 0), (theirs, NOBODY)):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner, owner)
    (open_folder / "link").symlink_to(mine)
    os.lchown(open_folder / "link", NOBODY, NOBODY)
    (open_folder / "my-link").symlink_to(theirs)
    with contextlib.ExitStack() as opened:
        for path, owner in ((mine / "s", 0), (open_folder / "s", NOBODY), (theirs / "s", NOBODY)):
            opened.enter_context(listen(path, owner))
        for good in (mine / "s", open_folder / "none/s"):
            trust.check(str(good))
        for bad in ("s", "theirs/s", "link/s", "my-link/s"):
            with pytest.raises(Unreachable) as refused:
                trust.check(str(open_folder / bad))
            assert f"belongs to user {NOBODY}" in refused.value.message
        # Another user's, where only he and root may write.
        open_folder.chmod(0o755)
        trust.check(str(theirs / "s"))
        open_folder.chmod(0o1777)
        workspace.env["DIFFPIPE_SOCKET"] = str(theirs / "s")
        code, out, err = workspace.ctl("status")
        assert code == 3 and "is not used" in err and not out


# --- the state directory


def start(workspace: Workspace) -> "subprocess.CompletedProcess[str]":
    """A daemon that is not to start."""
    return subprocess.run(
        [str(BIN / "dpiped")], env=workspace.env, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_state_directory_that_others_own_is_refused(workspace: Workspace) -> None:
    state = workspace.root / "diffpipe"
    for folder in (state, state / "runs"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, NOBODY, NOBODY)
        done = start(workspace)
        assert done.returncode == 78 and "DIFFPIPE_STATE_DIR" in done.stderr
        assert f"belongs to another user ({NOBODY})" in done.stderr and f"chown 0 {folder}" in done.stderr
        os.chown(folder, 0, 0)
    # Modes alone are mended, with a word to the log.
    state.chmod(0o777)
    (state / "runs").chmod(0o775)
    workspace.start_daemon()
    assert (mode(state), mode(state / "runs")) == (0o755, 0o755)
    assert f"{state} could be written to by others" in workspace.daemon_log()
    assert not [said for said in workspace.status()["notices"] if "STATE_DIR" in said or "GROUP" in said]


def test_where_no_modes_are_kept_it_is_said(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    keeps: Callable[[Path], bool] = private.keeps_modes
    assert keeps(tmp_path) and list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError):
        private.secure(tmp_path, "DIFFPIPE_STATE_DIR")
    said = private.secure(tmp_path, "DIFFPIPE_STATE_DIR", keeps_modes=lambda _: False)
    assert said is not None and "keeps no modes" in said


class Careless(type(Path())):  # type: ignore[misc]
    """On a volume that takes every mode and keeps none."""

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Nothing."""


def no_room(_: Path) -> bool:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_no_modes_are_kept_a_full_disk_does_not_matter(tmp_path: Path) -> None:
    """Or a daemon that crashes beside a training that has filled it would not come back."""
    tmp_path.chmod(0o777)
    said = private.secure(Careless(tmp_path), "DIFFPIPE_STATE_DIR", keeps_modes=no_room)
    assert said is not None and "keeps no modes" in said


def test_a_socket_that_was_handed_over_is_opened_to_the_group(tmp_path: Path) -> None:
    """systemd gives it to the daemon's own group, with all that is in its RuntimeDirectory."""
    path = tmp_path / "dpiped/d.sock"
    path.parent.mkdir(mode=0o700)
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    path.chmod(0o660)
    lock = Lock(path.with_name("lock"), "DIFFPIPE_SOCKET")
    listening = Listening(path, lock, ServiceManager(listener=made.detach()), GROUP)
    listening.open()
    assert (mode(path), path.stat().st_gid) == (0o660, GROUP) and not listening.own
    listening.close()
    lock.release()


def test_what_is_made_above_it_is_nobody_elses_either(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert private.make(tmp_path / "a/b/c") and not private.make(tmp_path / "a/b/c")
    finally:
        os.umask(before)
    assert [mode(tmp_path / each) for each in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o700]
    assert private.open_above(tmp_path / "a/b/c") is None
    (tmp_path / "a").chmod(0o777)
    assert private.open_above(tmp_path / "a/b/c") == (tmp_path / "a").resolve()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        private.make(tmp_path / "file")
