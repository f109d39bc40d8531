"""Who may connect to the socket: its owner, root, and the members of one group.

Why: whoever can send to the socket starts programs as the daemon's user. The file's mode says who may
connect, but a mode is changed by one careless `chmod -R`. So the kernel's word for who the peer is
(SO_PEERCRED) is asked as well, by ZeroMQ, for each connection, before a byte of it is read; also on a socket
that systemd has bound.

Source: zmq_setsockopt(3), ZMQ_IPC_FILTER_UID and ZMQ_IPC_FILTER_GID. They are called deprecated there,
without anything that would take their place; a test holds the installed library to them.

Known gap: a member of the group is who has it as his primary group or stands in the group's list
(/etc/group); a process that was only given it (systemd's SupplementaryGroups=) is not. A user of another user
namespace counts as the one that he is here.
"""

import os
import stat
from pathlib import Path
from typing import Any

import zmq

from dpiped.errors import SettingsError

FIELD = "DIFFPIPE_SOCKET_GROUP"
OWN_DIRECTORY = "dpiped"
"""A directory of that name is ours, whoever made it: systemd does, with a mode that it keeps in its unit."""


def only_for(socket: "zmq.Socket[Any]", group: int | None) -> None:
    """Connections of others are closed unread. To be called before the socket is bound."""
    for user in {0, os.geteuid()}:
        socket.setsockopt(zmq.IPC_FILTER_UID, user)
    if group is not None:
        socket.setsockopt(zmq.IPC_FILTER_GID, group)


def open_to_group(path: Path, group: int | None) -> None:
    """Lets the group use a socket that was bound with mode 0600. Raises SettingsError."""
    if group is None:
        return
    try:
        found = path.stat()
        if (found.st_gid, stat.S_IMODE(found.st_mode)) == (group, 0o660):
            return
        # In this order: with the old group the mode would be another group's.
        os.chown(path, -1, group)
        path.chmod(0o660)
    except OSError as error:
        raise _not_given(path, group, error) from error


def let_group_enter(directory: Path, group: int | None, made: bool) -> None:
    """Mode 0750 with that group, for a directory of our own; another is left. Raises SettingsError."""
    if group is None or not (made or directory.name == OWN_DIRECTORY):
        return
    if directory.stat().st_uid != os.geteuid():
        return
    try:
        os.chown(directory, -1, group)
        directory.chmod(0o750)
    except OSError as error:
        raise _not_given(directory, group, error) from error


def kept_out(directory: Path, group: int | None) -> str | None:
    """Why the group's members don't reach the socket in a directory that is not ours to change."""
    found = directory.stat()
    if (
        group is None
        or found.st_mode & stat.S_IXOTH
        or (found.st_gid == group and found.st_mode & stat.S_IXGRP)
    ):
        return None
    return (
        f"{FIELD}: the group's members can't enter {directory}: chgrp {group} {directory}; "
        f"chmod 750 {directory}"
    )


def _not_given(path: Path, group: int, error: OSError) -> SettingsError:
    return SettingsError(
        f"{FIELD}: {path} can't be given to the group {group}: {error.strerror}",
        field=FIELD,
        hint="the daemon's user has to be a member of it",
    )
