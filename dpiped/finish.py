"""`dpiped finish`: ends the run that a daemon has left behind, as that daemon would have.

Why: `systemctl stop` has to leave nothing, also where the daemon hangs and is killed, or is just not there
because it crashed a moment before. Neither can be left to systemd: to kill all processes of the unit would
kill the training whenever the daemon crashes.

It is recovery and the ladder of a stop, without a socket. With another daemon in charge, or with
DIFFPIPE_ON_EXIT=detach, it leaves the run alone.

Known gap: a wrong setting keeps it from finding the run.
"""

import asyncio
import contextlib
import logging
import sys

from dpiped.daemon import STATE_LOCK, prepare_state
from dpiped.locks import Lock
from dpiped.service import Service
from dpiped.settings import ServiceManager, Settings
from dpiped.supervisor import Supervisor

BY = "dpiped finish"

log = logging.getLogger("dpiped")


def main(settings: Settings, manager: ServiceManager) -> int:
    """Returns when no process of a run is left. Raises SettingsError; AlreadyOwned beside a daemon."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.on_exit == "detach":
        log.info("leaving the run to the next daemon (DIFFPIPE_ON_EXIT=detach)")
        return 0
    if not settings.state_dir.exists():
        return 0
    prepare_state(settings)
    lock = Lock(settings.state_dir / STATE_LOCK, "DIFFPIPE_STATE_DIR")
    try:
        asyncio.run(_finish(settings, manager))
    finally:
        lock.release()
    return 0


async def _finish(settings: Settings, manager: ServiceManager) -> None:
    supervisor = Supervisor(settings)
    service = Service(manager, supervisor)
    async with service.starting():
        await supervisor.recover(service.going_on)
    if supervisor.live is None:
        return
    log.info("run %s was left behind; ending it", supervisor.live.id)
    telling = asyncio.create_task(service.keep_status())
    await supervisor.end(BY)
    telling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await telling
