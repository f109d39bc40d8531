"""Whose socket is it? Asked before anything is sent.

Why: in a directory such as /tmp anybody may put a socket at the place where the daemon's was, or is to be,
and would be sent the variables of the next training, keys included. So what lies in a directory that all may
write to has to be root's or the user's own, link or not, all the way to the socket. A daemon of another user
is believed where only he or root could have put it, as in /run/dpiped.

Known gap: directories that a group may write to are taken for their owner's.
"""

import os
import stat

from dpiped.errors import Unreachable


def check(path: str) -> None:
    """Raises Unreachable for a socket that anybody may have put there. What is missing is not said here."""
    doubtful = _doubtful(path)
    real = os.path.realpath(path)
    if doubtful is None and real != path:
        doubtful = _doubtful(real)
    if doubtful is not None:
        owner = os.lstat(doubtful).st_uid
        raise Unreachable(
            f"the socket {path} is not used: anybody may have put {doubtful} there; "
            f"it belongs to user {owner}",
            hint="let the daemon listen in a directory of its own, such as /run/dpiped (DIFFPIPE_SOCKET)",
        )


def _doubtful(path: str) -> str | None:
    """The first part of the path that a stranger may have made."""
    open_to_all = False
    at = ""
    for name in path.split("/"):
        at = f"{at}{name}/" if not name else f"{at.rstrip('/')}/{name}"
        try:
            found = os.lstat(at)
        except OSError:
            return None
        if open_to_all and found.st_uid not in (0, os.geteuid()):
            return at
        open_to_all = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_IWOTH)
    return None
