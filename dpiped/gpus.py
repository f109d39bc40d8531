"""What the GPUs of this machine hold, as NVIDIA's driver tells it, where there is one.

Why: most trainings that fail run out of GPU memory, and whoever asks what else sits there would need a shell.
A driver may hang for minutes, or for ever, when a GPU is lost. So it is asked in a thread that nothing waits
for: not a reply, not the daemon's end. A machine without a driver is looked at once and never again.

`CUDA_VISIBLE_DEVICES` is for trainings; here all GPUs that the driver shows are told.

Known gap: GPUs of other makers are not told. A thread that hangs inside the kernel keeps the process from
ending or from being re-executed until the kernel lets go of it.
"""

import asyncio
import logging
import threading
from typing import Any

from msgspec import Struct

from dpiped import signals
from dpiped.messages import Gpu
from dpiped.supervisor import Supervisor

LIBRARY = "libnvidia-ml.so.1"
EVERY_ACTIVE = 2.0
EVERY_IDLE = 10.0
DROPPED_AFTER = 30.0
"""Seconds after which values that could not be renewed are dropped."""
SMALL_MEMORY = 0.01
"""Of the total: a change up to this is not worth a message."""
SMALL_UTILIZATION = 5
FIRST_TICK = 0.01
LAST_TICK = 0.5
HANGS = f"What the GPUs hold is not known: NVIDIA's driver has not answered for {DROPPED_AFTER:g} s."
FAILS = "What the GPUs hold is not known: NVIDIA's driver fails: {}"

log = logging.getLogger("dpiped.gpus")


class Gpus:
    """Keeps `view` as it is. Only changes that matter get into it, so that it changes with the revision."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.view: tuple[Gpu, ...] = ()
        self._supervisor = supervisor
        self._driver = Driver()
        self._problems: tuple[str, ...] = ()

    async def follow(self) -> None:
        """Looks again and again until cancelled; once only where there is no driver."""
        now = asyncio.get_running_loop().time
        known_at = now()
        while True:
            look = _Look(self._driver)
            look.start()
            await self._until_over(look, known_at)
            if look.no_driver:
                return
            if look.found is not None:
                known_at = now()
                await self._tell(look.found.gpus, look.found.problems)
            elif now() - known_at > DROPPED_AFTER:
                await self._tell((), (FAILS.format(look.failure),))
            active = self._active()
            pause = EVERY_ACTIVE if active else EVERY_IDLE
            # What is known must not be told longer than it may because nobody looks.
            left = known_at + DROPPED_AFTER - now()
            await self._pause(active, min(pause, left) if left > 0 else pause)

    async def _pause(self, active: bool, seconds: float) -> None:
        """Shorter when a run begins or ends: the memory changes then."""
        await self._supervisor.changes.wait_until(lambda: self._active() != active, seconds)

    def _active(self) -> bool:
        return self._supervisor.live is not None

    async def _until_over(self, look: "_Look", known_at: float) -> None:
        """A look that does not come back is waited for, not repeated; what was known gets old meanwhile."""
        tick = FIRST_TICK
        while look.is_alive():
            await asyncio.sleep(tick)
            tick = min(2 * tick, LAST_TICK)
            if asyncio.get_running_loop().time() - known_at > DROPPED_AFTER:
                await self._tell((), (HANGS,))

    async def _tell(self, gpus: tuple[Gpu, ...], problems: tuple[str, ...]) -> None:
        if problems == self._problems and not differ(self.view, gpus):
            return
        for text in set(self._problems).difference(problems):
            self._supervisor.withdraw(text)
        for text in problems:
            self._supervisor.notice(text)
        self.view, self._problems = gpus, problems
        await self._supervisor.changes.announce()


class Found(Struct, frozen=True):
    """What one look found. `problems` are GPUs that could not be looked at, in words."""

    gpus: tuple[Gpu, ...]
    problems: tuple[str, ...] = ()


class NoDriver(Exception):
    """This machine has none, or has it switched off."""


class DriverFailed(Exception):
    """The driver is there and answers with an error, which is the text."""


class Driver:
    """NVIDIA's library. One thread at a time."""

    def __init__(self) -> None:
        self._open = False

    def look(self) -> Found:
        """Raises NoDriver, DriverFailed."""
        import ctypes

        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NoDriver from error
        # Only now: importing it takes as long as all that the daemon does before it listens.
        import pynvml

        try:
            self._prepare(pynvml)
            return _found(pynvml)
        except (pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_LibraryNotFound) as error:
            raise NoDriver from error
        except pynvml.NVMLError as error:
            self._begin_anew(pynvml)
            raise DriverFailed(str(error)) from error

    def _prepare(self, nvml: Any) -> None:
        """Opened once and kept: on some machines the driver takes seconds for it, and wakes the GPUs."""
        if not self._open:
            nvml.nvmlInit()
            self._open = True

    def _begin_anew(self, nvml: Any) -> None:
        """The driver may have been replaced meanwhile."""
        was_open, self._open = self._open, False
        try:
            if was_open:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            log.debug("the driver can't be closed: %s", error)


def differ(said: tuple[Gpu, ...], now: tuple[Gpu, ...]) -> bool:
    """Is the change worth a message?"""
    return len(said) != len(now) or any(_differs(*pair) for pair in zip(said, now, strict=True))


def _differs(said: Gpu, now: Gpu) -> bool:
    if (said.index, said.name, said.memory_total) != (now.index, now.name, now.memory_total):
        return True
    if abs(said.memory_used - now.memory_used) > SMALL_MEMORY * now.memory_total:
        return True
    if said.utilization is None or now.utilization is None:
        return said.utilization != now.utilization
    return abs(said.utilization - now.utilization) > SMALL_UTILIZATION


def _found(nvml: Any) -> Found:
    gpus, problems = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, index))
        except nvml.NVMLError_NoPermission:
            # In a container the driver counts the GPUs of the others as well.
            continue
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotSupported) as error:
            problems.append(f"GPU {index} does not tell what it holds: {error}")
    return Found(tuple(gpus), tuple(problems))


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError_NotSupported:
        # One that is divided (MIG, vGPU) has none.
        utilization = None
    name = str(nvml.nvmlDeviceGetName(handle))
    return Gpu(index, name, int(memory.used), int(memory.total), utilization)


class _Look(threading.Thread):
    """One look. A daemon thread: the process ends without it."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(name="dpiped-gpus", daemon=True)
        self._driver = driver
        self.found: Found | None = None
        self.failure = ""
        self.no_driver = False

    def run(self) -> None:
        # Signals are the main thread's; while it holds them back, this one must not take them.
        signals.hold()
        try:
            self.found = self._driver.look()
        except NoDriver:
            self.no_driver = True
        except DriverFailed as error:
            self.failure = str(error)
        except Exception as error:  # whatever it is, the next look may succeed
            log.exception("looking at the GPUs failed")
            self.failure = repr(error)
