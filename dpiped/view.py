"""The `status` reply, put together from the parts.

Why: what a person is told must come from one place, the same for the terminal, HTTP and systemd.

Known gap: the number of processes left is counted anew for each reply while a stop is under way.
"""

import os
import time

import dpiped
from dpiped import lifecycle, messages
from dpiped.supervisor import DOES, Supervisor

_NAMES: dict[type, messages.State] = {
    lifecycle.Idle: "idle",
    lifecycle.Starting: "starting",
    lifecycle.Running: "running",
    lifecycle.Stopping: "stopping",
}


def status(
    supervisor: Supervisor, tensorboard: messages.TensorBoard, gpus: tuple[messages.Gpu, ...]
) -> messages.Status:
    """The whole picture, now."""
    state = supervisor.machine.state
    stopping = _stopping(supervisor, state) if isinstance(state, lifecycle.Stopping) else None
    return messages.Status(
        state=_NAMES[type(state)],
        run=supervisor.live.view(stopping) if supervisor.live else None,
        last_run=supervisor.last,
        tensorboard=tensorboard,
        version=dpiped.__version__,
        revision=supervisor.revision,
        pid=os.getpid(),
        notices=tuple(supervisor.notices),
        gpus=gpus,
    )


def _stopping(supervisor: Supervisor, state: lifecycle.Stopping) -> str:
    left = len(supervisor.live.members()) if supervisor.live else 0
    seconds = max(state.deadline - time.monotonic(), 0)
    return f"{DOES[state.rung]}; {left} processes left, {seconds:.0f} s to the next step"
