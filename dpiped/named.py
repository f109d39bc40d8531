"""Which run a request means.

Why: a run goes on or is over, and may end between two looks. All requests ask here, so that none of them
takes an active run for a past one.

Known gap: none.
"""

from dpiped import history
from dpiped.live import LiveRun
from dpiped.supervisor import Supervisor


def active(supervisor: Supervisor, run: str) -> LiveRun | None:
    """The run of that id if it is going on."""
    live = supervisor.live
    return live if live is not None and live.id == run else None


def run_id(supervisor: Supervisor, name: str | None) -> str:
    """The run meant: by name, or the active one, or the last one. Raises UnknownRun."""
    if name is None and supervisor.live is not None:
        return supervisor.live.id
    return history.resolve(supervisor.runs, name or history.LAST)
