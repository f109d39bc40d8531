"""Messages to the service manager, by the protocol of sd_notify(3): datagrams to NOTIFY_SOCKET.

Why: systemd must know when the daemon is really there, and that it still is; an administrator reads in
`systemctl status` how far the training is. Without a service manager nothing is sent.

A message that says a state (READY, RELOADING, STOPPING) may wait a moment for room in systemd's queue; a
message that comes again soon must not hold the event loop up, and is left out instead.

Known gap: none.
"""

import contextlib
import logging
import socket
import time

PATIENCE = 2.0
"""Seconds."""

log = logging.getLogger("dpiped.notify")


class Notifier:
    """Sends to `address`, a path or an abstract socket (@NAME); to nobody without one."""

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address is not None and address.startswith("@") else address
        self._failed = False

    def ready(self) -> None:
        """Started, or reloaded."""
        self._send("READY=1", PATIENCE)

    def status(self, text: str) -> bool:
        """One line for people. False if there was no room for it."""
        return self._send(f"STATUS={' '.join(text.split())}")

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}\nWATCHDOG=1", PATIENCE)

    def stopping(self) -> None:
        self._send("STOPPING=1", PATIENCE)

    def alive(self) -> None:
        """What the watchdog waits for."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """The start or stop under way may take this long from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, text: str, patience: float = 0.0) -> bool:
        if self._address is None:
            return True
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender:
            sender.settimeout(patience)
            try:
                sender.sendto(text.encode(errors="replace"), self._address)
            except (BlockingIOError, TimeoutError):
                return False
            except OSError as error:
                if not self._failed:
                    log.warning("the service manager can't be told anything: %s", error)
                self._failed = True
                return False
        self._failed = False
        return True
