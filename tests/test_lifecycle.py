"""The state machine of a run: every state against every event, the ladder, and random orders of events."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dpiped.lifecycle import (
    KILL_AGAIN_AFTER,
    RUNGS,
    Action,
    Adopt,
    Await,
    Climb,
    Conclude,
    Ended,
    Event,
    Fall,
    Idle,
    Ladder,
    Launched,
    Machine,
    NotAllowed,
    Record,
    Rung,
    Running,
    Spawn,
    Start,
    Starting,
    State,
    Stop,
    Stopping,
    step,
)

CALM = settings(deadline=None)
"""A busy machine is no reason to fail."""

LADDER = Ladder(save=600.0, term=20.0)
OTHER_LADDER = Ladder(save=7.0, term=3.0)
NOW = 1000.0


def stopping(rung: Rung, deadline: float = 1100.0) -> Stopping:
    return Stopping("a", rung, deadline, LADDER)


def entered(rung: Rung, deadline: float, ladder: Ladder = LADDER) -> tuple[State, tuple[Action, ...]]:
    return Stopping("a", rung, deadline, ladder), (Record("a", rung, deadline), Climb("a", rung, deadline))


def sooner(rung: Rung, deadline: float, ladder: Ladder = LADDER) -> tuple[State, tuple[Action, ...]]:
    return Stopping("a", rung, deadline, ladder), (Record("a", rung, deadline), Await("a", deadline))


START, START_OTHER = Start("a"), Start("b")
LAUNCHED, LAUNCHED_OTHER = Launched("a"), Launched("b")
ENDED, ENDED_OTHER = Ended("a"), Ended("b")
FALL = Fall(NOW)
ADOPT_NEW, ADOPT_LAUNCHED = Adopt("a", launched=False), Adopt("a", launched=True)
ADOPT_STOPPING = Adopt("a", launched=True, stopping=stopping("term"))
STOPS: dict[Rung, Stop] = {rung: Stop(rung, NOW, LADDER) for rung in RUNGS}

STATES: dict[str, State] = {
    "idle": Idle(),
    "starting": Starting("a"),
    "running": Running("a"),
    "on save": stopping("save"),
    "on term": stopping("term"),
    "on kill": stopping("kill"),
}
EVENTS: dict[str, Event] = {
    "start": START,
    "start of another": START_OTHER,
    "launched": LAUNCHED,
    "launched of another": LAUNCHED_OTHER,
    "stop by save": STOPS["save"],
    "stop by term": STOPS["term"],
    "stop by kill": STOPS["kill"],
    "stop by term within 3 s": Stop("term", NOW, OTHER_LADDER),
    "fall": FALL,
    "ended": ENDED,
    "ended of another": ENDED_OTHER,
    "adopt starting": ADOPT_NEW,
    "adopt launched": ADOPT_LAUNCHED,
    "adopt stopping": ADOPT_STOPPING,
}
CONCLUDED: tuple[State, tuple[Action, ...]] = (Idle(), (Conclude("a"),))
ALLOWED: dict[tuple[str, str], tuple[State, tuple[Action, ...]]] = {
    ("idle", "start"): (Starting("a"), (Spawn("a"),)),
    ("idle", "start of another"): (Starting("b"), (Spawn("b"),)),
    ("idle", "adopt starting"): (Starting("a"), ()),
    ("idle", "adopt launched"): (Running("a"), ()),
    ("idle", "adopt stopping"): (stopping("term"), (Climb("a", "term", 1100.0),)),
    ("starting", "launched"): (Running("a"), ()),
    ("starting", "stop by save"): entered("save", NOW + 600),
    ("starting", "stop by term"): entered("term", NOW + 20),
    ("starting", "stop by kill"): entered("kill", NOW + KILL_AGAIN_AFTER),
    ("starting", "stop by term within 3 s"): entered("term", NOW + 3, OTHER_LADDER),
    ("starting", "ended"): CONCLUDED,
    ("running", "stop by save"): entered("save", NOW + 600),
    ("running", "stop by term"): entered("term", NOW + 20),
    ("running", "stop by kill"): entered("kill", NOW + KILL_AGAIN_AFTER),
    ("running", "stop by term within 3 s"): entered("term", NOW + 3, OTHER_LADDER),
    ("running", "ended"): CONCLUDED,
    ("on save", "launched"): (stopping("save"), (Climb("a", "save", 1100.0),)),
    ("on save", "stop by save"): (stopping("save"), ()),
    ("on save", "stop by term"): entered("term", NOW + 20),
    ("on save", "stop by kill"): entered("kill", NOW + KILL_AGAIN_AFTER),
    ("on save", "stop by term within 3 s"): entered("term", NOW + 3, OTHER_LADDER),
    ("on save", "fall"): entered("term", NOW + 20),
    ("on save", "ended"): CONCLUDED,
    ("on term", "launched"): (stopping("term"), (Climb("a", "term", 1100.0),)),
    ("on term", "stop by save"): (stopping("term"), ()),
    ("on term", "stop by term"): sooner("term", NOW + 20),
    ("on term", "stop by kill"): entered("kill", NOW + KILL_AGAIN_AFTER),
    ("on term", "stop by term within 3 s"): sooner("term", NOW + 3, OTHER_LADDER),
    ("on term", "fall"): entered("kill", NOW + KILL_AGAIN_AFTER),
    ("on term", "ended"): CONCLUDED,
    ("on kill", "launched"): (stopping("kill"), (Climb("a", "kill", 1100.0),)),
    ("on kill", "stop by save"): (stopping("kill"), ()),
    ("on kill", "stop by term"): (stopping("kill"), ()),
    ("on kill", "stop by kill"): sooner("kill", NOW + KILL_AGAIN_AFTER),
    ("on kill", "stop by term within 3 s"): (stopping("kill"), ()),
    ("on kill", "fall"): (
        stopping("kill", NOW + KILL_AGAIN_AFTER),
        (Climb("a", "kill", NOW + KILL_AGAIN_AFTER),),
    ),
    ("on kill", "ended"): CONCLUDED,
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_state_meets_every_event(state: str, event: str) -> None:
    expected = ALLOWED.get((state, event))
    if expected is not None:
        assert step(STATES[state], EVENTS[event]) == expected
        return
    with pytest.raises(NotAllowed) as refusal:
        step(STATES[state], EVENTS[event])
    assert (refusal.value.state, refusal.value.event) == (STATES[state], EVENTS[event])


def test_a_refused_event_changes_nothing_and_carries_the_history() -> None:
    machine = Machine()
    machine.feed(START)
    machine.feed(LAUNCHED)
    with pytest.raises(NotAllowed) as refusal:
        machine.feed(START_OTHER)
    assert machine.state == Running("a")
    assert refusal.value.state == Running("a")
    assert refusal.value.event == START_OTHER
    assert refusal.value.history == ((Idle(), START), (Starting("a"), LAUNCHED))
    assert machine.feed(ENDED) == (Conclude("a"),)


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    machine = Machine()
    for number in range(30):
        machine.feed(Start(f"run{number}"))
        machine.feed(Ended(f"run{number}"))
    with pytest.raises(NotAllowed) as refusal:
        machine.feed(FALL)
    assert len(refusal.value.history) == 20
    assert refusal.value.history[-1] == (Starting("run29"), Ended("run29"))


def rungs_of(actions: Sequence[Action]) -> list[tuple[Rung, float]]:
    return [(action.rung, action.deadline) for action in actions if isinstance(action, Climb)]


def test_the_ladder_falls_from_save_to_term_to_kill_and_kills_again() -> None:
    machine = Machine()
    machine.feed(START)
    machine.feed(LAUNCHED)
    assert rungs_of(machine.feed(Stop("save", 0.0, LADDER))) == [("save", 600.0)]
    assert rungs_of(machine.feed(Fall(601.0))) == [("term", 621.0)]
    assert rungs_of(machine.feed(Fall(622.0))) == [("kill", 623.0)]
    again = machine.feed(Fall(623.5))
    assert again == (Climb("a", "kill", 624.5),)
    assert rungs_of(machine.feed(Fall(624.5))) == [("kill", 625.5)]
    assert machine.feed(ENDED) == (Conclude("a"),)
    assert machine.state == Idle()


def test_a_stronger_stop_jumps_and_brings_its_own_ladder() -> None:
    state, _ = step(stopping("save"), Stop("term", NOW, OTHER_LADDER))
    assert state == Stopping("a", "term", NOW + 3.0, OTHER_LADDER)


def test_a_weaker_stop_keeps_rung_deadline_and_ladder() -> None:
    before = stopping("term")
    assert step(before, Stop("save", NOW, OTHER_LADDER)) == (before, ())


def test_a_stop_while_starting_is_sent_again_once_the_child_is_known() -> None:
    machine = Machine()
    machine.feed(START)
    machine.feed(STOPS["term"])
    assert machine.feed(LAUNCHED) == (Climb("a", "term", NOW + 20),)
    assert machine.state == Stopping("a", "term", NOW + 20, LADDER)


@pytest.mark.parametrize("state", [name for name in STATES if name != "idle"])
def test_a_run_that_ended_leaves_room_for_the_next(state: str) -> None:
    after, actions = step(STATES[state], ENDED)
    assert actions == (Conclude("a"),)
    assert step(after, START_OTHER) == (Starting("b"), (Spawn("b"),))


def test_an_adopted_stop_whose_deadline_passed_goes_on_down_the_ladder() -> None:
    machine = Machine()
    adopted = Stopping("a", "save", NOW - 5, LADDER)
    assert machine.feed(Adopt("a", launched=True, stopping=adopted)) == (Climb("a", "save", NOW - 5),)
    assert rungs_of(machine.feed(FALL)) == [("term", NOW + 20)]


class AnyOrder(RuleBasedStateMachine):
    """Feeds whatever comes to one machine, beside a naive account of what may be true.

    Events of runs that are over or never were come too, deadlines pass in any order or are told late, and
    the daemon may be killed after any event: the next machine adopts what the one before had recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.now = 0.0
        self.active: str | None = None
        self.launched_known = False
        self.rung = -1
        self.recorded: tuple[Rung, float] | None = None
        self.timer: float | None = None
        self.made = 0
        self.spawned: list[str] = []
        self.started: list[str] = []
        self.taken_in: list[str] = []
        self.concluded: list[str] = []

    def feed(self, event: Event) -> bool:
        before = self.machine.state
        try:
            actions = self.machine.feed(event)
        except NotAllowed as refusal:
            assert (self.machine.state, refusal.state, refusal.event) == (before, before, event)
            return False
        kinds = [type(action) for action in actions]
        assert kinds in ([], [Spawn], [Conclude], [Climb], [Record, Climb], [Record, Await]), (
            "recorded before it is done"
        )
        for action in actions:
            self.carry_out(before, event, action)
        return True

    def carry_out(self, before: State, event: Event, action: Action) -> None:
        """What the supervisor does, as far as it can be wrong."""
        after = self.machine.state
        match action:
            case Spawn(run):
                assert isinstance(before, Idle) and isinstance(event, Start), "spawned beside another run"
                assert self.concluded == self.taken_in, "spawned before the run before it was concluded"
                self.spawned.append(run)
            case Conclude(run):
                assert run == self.active and after == Idle()
                self.concluded.append(run)
                self.timer = self.recorded = None
            case Climb(run, rung, deadline):
                assert run == self.active or isinstance(event, Adopt)
                assert isinstance(after, Stopping)
                assert (after.run, after.rung, after.deadline) == (run, rung, deadline)
                assert RUNGS.index(rung) >= self.rung
                assert deadline > self.now or not isinstance(event, Stop | Fall)
                self.timer = deadline
            case Await(run, deadline):
                assert isinstance(before, Stopping) and isinstance(after, Stopping)
                assert (after.run, after.rung, after.deadline) == (run, before.rung, deadline)
                assert deadline < before.deadline
                self.timer = deadline
            case Record(run, rung, deadline):
                assert isinstance(after, Stopping)
                assert (after.run, after.rung, after.deadline) == (run, rung, deadline)
                self.recorded = rung, deadline

    def known(self, back: int) -> str:
        """The run taken in last, one of those before it, or one that never was."""
        return self.taken_in[-1 - back] if back < len(self.taken_in) else "never"

    def take_in(self, run: str, launched: bool, rung: Rung | None) -> None:
        self.active, self.launched_known = run, launched
        self.rung = RUNGS.index(rung) if rung else -1
        self.taken_in.append(run)

    @rule(seconds=st.floats(0.001, 1000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        self.made += 1
        run = f"run{self.made}"
        allowed = self.feed(Start(run))
        assert allowed == (self.active is None)
        if allowed:
            self.started.append(run)
            self.take_in(run, False, None)

    @rule(
        launched=st.booleans(),
        rung=st.none() | st.sampled_from(RUNGS),
        left=st.floats(-1000, 1000),
        ladder=st.sampled_from((LADDER, OTHER_LADDER)),
    )
    def adopt(self, launched: bool, rung: Rung | None, left: float, ladder: Ladder) -> None:
        """A run of another daemon; the deadline of its stop may have passed long ago."""
        self.made += 1
        run = f"run{self.made}"
        stop = Stopping(run, rung, self.now + left, ladder) if rung else None
        if self.active is None:
            self.rung = -1
        allowed = self.feed(Adopt(run, launched, stop))
        assert allowed == (self.active is None)
        if allowed:
            self.take_in(run, launched, rung)
            self.recorded = (rung, self.now + left) if rung else None

    @rule(rung=st.sampled_from(RUNGS), back=st.integers(1, 3))
    def adopt_with_the_stop_of_another_run(self, rung: Rung, back: int) -> None:
        other = Stopping(self.known(back), rung, self.now + 1, LADDER)
        assert not self.feed(Adopt("mixed", True, other))

    @precondition(lambda self: self.active is not None)
    @rule(ladder=st.sampled_from((LADDER, OTHER_LADDER)))
    def the_daemon_is_killed_and_the_next_one_adopts(self, ladder: Ladder) -> None:
        assert self.active is not None
        self.machine, self.timer = Machine(), None
        stop = Stopping(self.active, *self.recorded, ladder) if self.recorded else None
        # `carry_out` holds the new machine to the rung of the old one.
        assert self.feed(Adopt(self.active, self.launched_known, stop))

    @rule(back=st.integers(0, 3))
    def launched(self, back: int) -> None:
        run = self.known(back)
        allowed = self.feed(Launched(run))
        if allowed:
            assert run == self.active
            self.launched_known = True
        else:
            assert run != self.active or (self.launched_known and self.rung < 0)

    @rule(rung=st.sampled_from(RUNGS), ladder=st.sampled_from((LADDER, OTHER_LADDER)))
    def stop(self, rung: Rung, ladder: Ladder) -> None:
        before = self.machine.state
        allowed = self.feed(Stop(rung, self.now, ladder))
        assert allowed == (self.active is not None)
        if allowed:
            after = self.machine.state
            if isinstance(before, Stopping) and isinstance(after, Stopping) and before.rung == after.rung:
                assert after.deadline <= before.deadline, "a second stop grants no more time"
            self.rung = max(self.rung, RUNGS.index(rung))

    @rule()
    def fall(self) -> None:
        """At any time: there may be nothing to save into, or a timer of a former state may come late."""
        allowed = self.feed(Fall(self.now))
        assert allowed == (self.rung >= 0)
        if allowed:
            self.rung = min(self.rung + 1, len(RUNGS) - 1)

    @precondition(lambda self: self.timer is not None)
    @rule(late=st.floats(0, 100))
    def the_deadline_passes(self, late: float) -> None:
        assert self.timer is not None
        self.now = max(self.now, self.timer) + late
        self.fall()

    @rule(back=st.integers(0, 3))
    def ended(self, back: int) -> None:
        run = self.known(back)
        allowed = self.feed(Ended(run))
        assert allowed == (run == self.active)
        if allowed:
            self.active, self.rung = None, -1

    @invariant()
    def agrees_with_the_account(self) -> None:
        state = self.machine.state
        assert (None if isinstance(state, Idle) else state.run) == self.active
        assert (RUNGS.index(state.rung) if isinstance(state, Stopping) else -1) == self.rung
        ended = self.taken_in if self.active is None else self.taken_in[:-1]
        assert self.concluded == ended, "each run is concluded exactly once, in order"
        assert self.spawned == self.started, "each started run is spawned once, an adopted one never"

    @invariant()
    def every_stop_goes_on_by_itself(self) -> None:
        state = self.machine.state
        if isinstance(state, Stopping):
            assert self.timer == state.deadline, "a deadline is pending"
            assert self.recorded is not None and self.recorded[0] == state.rung, "the next daemon knows"
        else:
            assert self.timer is None

    def teardown(self) -> None:
        """Whatever came before, a stop is on the last rung after two deadlines, and its end is the end."""
        if self.active is None:
            return
        self.stop("save", LADDER)
        for _ in RUNGS[1:]:
            self.the_deadline_passes(0.0)
        assert self.rung == RUNGS.index("kill")
        self.ended(0)
        assert self.concluded == self.taken_in


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = CALM


@CALM
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=40))
def test_the_rung_never_weakens_while_a_run_stops(names: list[str]) -> None:
    machine = Machine()
    for name in names:
        before = machine.state
        try:
            machine.feed(EVENTS[name])
        except NotAllowed:
            continue
        after = machine.state
        if isinstance(before, Stopping) and isinstance(after, Stopping):
            assert after.run == before.run
            assert RUNGS.index(after.rung) >= RUNGS.index(before.rung)
            if after.rung == before.rung and isinstance(EVENTS[name], Stop):
                assert after.deadline <= before.deadline, "a second stop grants no more time"
        elif isinstance(before, Stopping):
            assert after == Idle(), "out of stopping leads only the run's end"
