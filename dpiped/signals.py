"""The signals that the daemon handles, and holding them back while nobody is there to handle them.

Why: a daemon takes some tenths of a second to import its parts, to let go at its end, and to re-execute
itself. A SIGHUP or SIGTERM in one of these moments would kill it by the default action, or be lost. Held
back, it waits for the handlers; over a re-execution too.

Known gap: only the main thread holds them back. What another thread catches meanwhile goes to the event
loop, and from there through `keep`.
"""

import signal

HANDLED = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def hold() -> None:
    """From now on they wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def release() -> None:
    """Those that waited are delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def keep(name: str) -> None:
    """Sends this thread a signal that it holds back, for whoever it becomes by a re-execution."""
    signal.raise_signal(signal.Signals[name])
