"""The pure state machine of the one run that a machine trains.

Why: whether a start is allowed, what a stop does next and what an exit means are decided here and
only here, without I/O, so that every order of events can be tried in a test. Starting is a state, so
two starts at the same moment can't both pass; a stop that arrives while the run is still being
launched is a state too, so it can't be lost.

`step(state, event)` gives the next state and what is to be done. `Machine` keeps the state and the
recent history, and raises `NotAllowed` with that history when an event does not fit.

    Idle ──Start──▶ Starting ──Launched──▶ Running ──Stop──▶ Stopping ──Ended──▶ Idle
                       └──────Stop──────────────────────────────▲
    (Ended leads to Idle from Starting and Running too; Adopt leads from Idle to any of them.)

Times are seconds of CLOCK_MONOTONIC, which all processes of one boot share.

Known gap: one run at a time; a queue would stand before this machine, not in it.
"""

from collections import deque
from typing import TypeAlias

from msgspec import Struct

from dpiped import messages

Rung: TypeAlias = messages.How
RUNGS: tuple[Rung, ...] = ("save", "term", "kill")
KILL_AGAIN_AFTER = 1.0
"""SIGKILL is repeated this often, since a process may fork between two looks."""


class Idle(Struct, frozen=True):
    """Nothing trains."""


class Starting(Struct, frozen=True):
    """The run directory is written and the runner spawned; its child is not known yet."""

    run: str


class Running(Struct, frozen=True):
    """The training's main process is known."""

    run: str


class Ladder(Struct, frozen=True):
    """How long each rung waits before the next, in seconds. `kill` repeats and has no next."""

    save: float
    term: float


class Stopping(Struct, frozen=True):
    """On `rung` until `deadline` (monotonic), then the next one."""

    run: str
    rung: Rung
    deadline: float
    ladder: Ladder


State: TypeAlias = Idle | Starting | Running | Stopping


class Start(Struct, frozen=True):
    """A start was asked for."""

    run: str


class Launched(Struct, frozen=True):
    """The runner recorded its child."""

    run: str


class Stop(Struct, frozen=True):
    """A stop was asked for, beginning at `rung`."""

    rung: Rung
    now: float
    ladder: Ladder


class Fall(Struct, frozen=True):
    """The present rung did not work: its deadline passed, or there is nothing to save into."""

    now: float


class Ended(Struct, frozen=True):
    """No process of the run is left, or it never came to be."""

    run: str


class Adopt(Struct, frozen=True):
    """A run found at the daemon's start: launched or not, with the stop that was already asked for."""

    run: str
    launched: bool
    stopping: Stopping | None = None


Event: TypeAlias = Start | Launched | Stop | Fall | Ended | Adopt


class Spawn(Struct, frozen=True):
    """Spawn the runner."""

    run: str


class Climb(Struct, frozen=True):
    """Do what the rung does: write save_quit, SIGTERM all, SIGKILL all. Then wait for the deadline."""

    run: str
    rung: Rung
    deadline: float


class Await(Struct, frozen=True):
    """Stay on the rung, but only until this deadline."""

    run: str
    deadline: float


class Record(Struct, frozen=True):
    """Write stop.json, so that the next daemon knows."""

    run: str
    rung: Rung
    deadline: float


class Conclude(Struct, frozen=True):
    """Read the records, name the outcome, tidy up."""

    run: str


Action: TypeAlias = Spawn | Climb | Await | Record | Conclude
Step: TypeAlias = tuple[State, tuple[Action, ...]]


class NotAllowed(Exception):
    """The event does not fit the state. `state` says which; `history` what came before, oldest first."""

    def __init__(self, state: State, event: Event, history: tuple[tuple[State, Event], ...] = ()) -> None:
        super().__init__(f"{event} is not allowed in {state}; before it: {list(history)}")
        self.state = state
        self.event = event
        self.history = history


def step(state: State, event: Event) -> Step:
    """The transition table. Raises NotAllowed for what is not in it."""
    match state, event:
        case Idle(), Start(run):
            return Starting(run), (Spawn(run),)
        case Idle(), Adopt(run, _, stopping) if stopping is None or stopping.run == run:
            return _adopted(event)
        case Starting(run), Launched(launched) if run == launched:
            return Running(run), ()
        case Starting(run) | Running(run), Stop():
            return _enter(run, event)
        case Stopping(run, rung), Stop() if RUNGS.index(event.rung) > RUNGS.index(rung):
            return _enter(run, event)
        case Stopping(run, rung, deadline), Stop(again) if rung == again and _wait_until(event) < deadline:
            sooner = _wait_until(event)
            after = Stopping(run, rung, sooner, event.ladder)
            return after, (Record(run, rung, sooner), Await(run, sooner))
        case Stopping(), Stop():
            return state, ()
        case Stopping(run, rung, deadline), Launched(launched) if run == launched:
            # The child came to be after the rung's signal was sent: send it again.
            return state, (Climb(run, rung, deadline),)
        case Stopping(run, "kill", _, ladder), Fall(now):
            deadline = now + KILL_AGAIN_AFTER
            return Stopping(run, "kill", deadline, ladder), (Climb(run, "kill", deadline),)
        case Stopping(run, rung, _, ladder), Fall(now):
            return _enter(run, Stop(RUNGS[RUNGS.index(rung) + 1], now, ladder))
        case Starting(run) | Running(run) | Stopping(run), Ended(ended) if run == ended:
            return Idle(), (Conclude(run),)
    raise NotAllowed(state, event)


def _wait_until(stop: Stop) -> float:
    """When the rung that a stop enters gives way to the next."""
    waits = {"save": stop.ladder.save, "term": stop.ladder.term, "kill": KILL_AGAIN_AFTER}
    return stop.now + waits[stop.rung]


def _enter(run: str, stop: Stop) -> Step:
    rung, deadline = stop.rung, _wait_until(stop)
    after = Stopping(run, rung, deadline, stop.ladder)
    return after, (Record(run, rung, deadline), Climb(run, rung, deadline))


def _adopted(event: Adopt) -> Step:
    if event.stopping is not None:
        again = event.stopping
        return again, (Climb(again.run, again.rung, again.deadline),)
    return (Running(event.run) if event.launched else Starting(event.run)), ()


class Machine:
    """Holds the state. The only place where it changes."""

    def __init__(self) -> None:
        self.state: State = Idle()
        self._history: deque[tuple[State, Event]] = deque(maxlen=20)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Applies one event. Raises NotAllowed, with the history, and then changes nothing."""
        try:
            after, actions = step(self.state, event)
        except NotAllowed as error:
            raise NotAllowed(error.state, error.event, tuple(self._history)) from None
        self._history.append((self.state, event))
        self.state = after
        return actions
