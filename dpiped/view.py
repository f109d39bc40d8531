"""The `status` reply, put together from the parts.

Why: what a person is told must come from one place, the same for the terminal, HTTP and systemd.

Known gap: the number of processes left is counted anew for each reply while a stop is under way.
"""

import os
import time

import dpiped
from dpiped import lifecycle, messages
from dpiped.live import total_steps
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
        revision=supervisor.changes.revision,
        pid=os.getpid(),
        notices=tuple(supervisor.notices),
        gpus=gpus,
    )


def line(supervisor: Supervisor) -> str:
    """The same in one line, as a service manager shows it."""
    live, state = supervisor.live, supervisor.machine.state
    if live is None:
        last = supervisor.last
        return f"idle; the last run, {last.id}: {last.outcome}" if last else "idle"
    said = live.progress.snapshot()
    facts = []
    if said.step is not None:
        total = total_steps(live.spec, said)
        facts.append(f"step {said.step} of {total}" if total is not None else f"step {said.step}")
    if said.loss is not None:
        facts.append(f"loss {said.loss:.4f}")
    phase = "stopping" if isinstance(state, lifecycle.Stopping) else said.phase
    return f"{phase} {live.id}" + (f": {', '.join(facts)}" if facts else "")


def _stopping(supervisor: Supervisor, state: lifecycle.Stopping) -> str:
    left = len(supervisor.live.members()) if supervisor.live else 0
    seconds = max(state.deadline - time.monotonic(), 0)
    return f"{DOES[state.rung]}; {left} processes left, {seconds:.0f} s to the next step"
