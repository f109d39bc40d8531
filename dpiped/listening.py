"""The listening Unix socket: made here, or handed over by systemd or by the daemon before a reload.

Why: ZeroMQ would remove the socket file and make it again at each start, so a client that comes during a
reload would find nobody. One that is handed on stays where it is: those who come meanwhile wait in its
queue. And a clean-up of /run or /tmp that deletes the file must not make the daemon unreachable for ever:
`lost` tells it, `renew` puts another one in its place.

The socket file is 0600, or 0660 for one group, in a directory that only its owner may write to: whoever can
connect may start processes as this user. Who connects is checked as well (peers.py).

Known gap: while a file put back belongs to the daemon, systemd's socket unit listens at one that is gone;
`systemctl restart dpiped.socket` after the daemon's next stop puts that right.
"""

import contextlib
import os
import socket
import stat
from pathlib import Path

from dpiped import peers, private
from dpiped.errors import SettingsError, of_place
from dpiped.locks import Lock
from dpiped.settings import FIRST_LISTENER, ServiceManager

FIELD = "DIFFPIPE_SOCKET"
QUEUE = 4096
"""Connections that may wait to be accepted; net.core.somaxconn may make it less."""


class Listening:
    """`open` first. `lock` is the one beside the socket file; who holds it may replace the file."""

    def __init__(self, path: Path, lock: Lock, manager: ServiceManager, group: int | None = None) -> None:
        self.path = path
        self.group = group
        self.own = manager.own
        """Was it made by a daemon? Then the daemon removes the file at its end."""
        self._lock = lock
        self._socket = _taken(manager.listener, path) if manager.listener is not None else None
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        """Raises SettingsError, NotReady if the directory is not safe or nothing can listen there."""
        prepare_directory(self.path.parent, self.group)
        if self._socket is None or not self._is_reached():
            self._make()
        else:
            # RuntimeDirectory= has it given to the daemon's own group.
            peers.open_to_group(self.path, self.group)
        self._file = self._found()

    def duplicate(self) -> int:
        """A descriptor for ZeroMQ, which closes it."""
        assert self._socket is not None
        return os.dup(self._socket.fileno())

    def lost(self) -> bool:
        """Is the file gone, or another one? Then no client can come any more."""
        return self._found() != self._file

    def renew(self) -> None:
        """Listens at the path anew. Raises SettingsError, NotReady, AlreadyOwned."""
        prepare_directory(self.path.parent, self.group)
        self._lock.renew()
        self._make()
        self._file = self._found()

    def forget(self) -> None:
        """Nobody is listened to at the path: it is lost until it is renewed."""
        self._file = (-1, -1)

    def hand_on(self) -> None:
        """Makes it survive the re-execution, where `ServiceManager.listener` will be."""
        assert self._socket is not None
        if self._socket.fileno() == FIRST_LISTENER:
            self._socket.set_inheritable(True)
        else:
            os.dup2(self._socket.fileno(), FIRST_LISTENER, inheritable=True)

    def close(self) -> None:
        """At the daemon's end. A file that is not this daemon's stays."""
        if self._socket is None:
            return
        if self.own and not self.lost():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._socket.close()

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_socket():
            raise SettingsError(
                f"{FIELD}: {self.path} exists and is no socket; it is left alone", field=FIELD
            )
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # The file must never exist with a wider mode, not even between bind and chmod.
        before = os.umask(0o177)
        try:
            self.path.unlink(missing_ok=True)
            made.bind(str(self.path))
            made.listen(QUEUE)
        except OSError as error:
            made.close()
            raise of_place(FIELD, str(self.path), error) from error
        finally:
            os.umask(before)
        peers.open_to_group(self.path, self.group)
        # What ZeroMQ had of the one before stays with it, so that its connections do.
        if self._socket is not None:
            self._socket.close()
        self._socket, self.own = made, True

    def _is_reached(self) -> bool:
        """Does the path lead to anybody who listens? It can only be the one that was handed over."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(self.path))
            except BlockingIOError:
                # Its queue is full.
                return True
            except OSError:
                return False
        return True

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _taken(number: int, path: Path) -> socket.socket:
    """The socket that was handed over, if it is what clients will look for. Raises SettingsError."""
    try:
        taken = socket.socket(fileno=number)
        kind = taken.family, taken.type
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError(
            f"LISTEN_FDS: descriptor {number} is no socket: {error.strerror}", field="LISTEN_FDS"
        ) from error
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        raise SettingsError(
            "LISTEN_FDS: the socket handed over is no listening Unix stream socket",
            field="LISTEN_FDS",
            hint="ListenStream= in dpiped.socket takes a path",
        )
    at = taken.getsockname()
    if not isinstance(at, str) or os.path.realpath(at) != os.path.realpath(path):
        raise SettingsError(
            f"{FIELD} is {path}, and the socket handed over listens on {at!r}",
            field=FIELD,
            hint="give ListenStream= in dpiped.socket and DIFFPIPE_SOCKET the same path",
        )
    taken.set_inheritable(False)
    taken.setblocking(False)
    return taken


def prepare_directory(directory: Path, group: int | None = None) -> None:
    """Makes it 0700, or checks that nobody else can put a socket in its place.

    `group` may enter one that is made here, or is ours by its name. Raises SettingsError, NotReady.
    """
    try:
        made = private.make(directory)
        peers.let_group_enter(directory, group, made)
        found = directory.stat()
    except OSError as error:
        raise of_place(FIELD, str(directory), error) from error
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.geteuid()) or open_to_others:
        raise SettingsError(
            f"{FIELD}: others may replace files in {directory}",
            field=FIELD,
            hint="use a directory of your own with mode 0700",
        )
