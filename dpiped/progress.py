"""What a training says about itself: bytes of its output in, phase, step, loss and evidence out.

Why: diffusion-pipe reports only by printing. A daemon that reads those lines one by one in Python
falls behind a chatty trainer; one that looks at exit codes alone calls a killed run "finished". This
parser is pure (no I/O, no clock), takes chunks of any size cut anywhere, and works with the bytes
methods, which search in C: the cost is per chunk and per mark, not per line.

Both streams go to one file, so a mark may stand behind an unfinished progress bar; marks are searched
unanchored, and `\\r` ends a piece of text just as `\\n` does.

Known gap: total steps are never printed. They are known once `max_steps` is set or the first epoch
has ended; before that `steps_per_epoch` is None (`epochs.py`). Nor is it printed that a checkpoint or a
model is written: with `steps_per_print` above 1 their phases last until the next printed step or mark.
"""

import re
from bisect import bisect_left
from collections import deque
from typing import TypeAlias

from msgspec import Struct

from dpiped.epochs import Epochs

CARRY_LIMIT = 64 << 10
"""An unfinished line longer than this keeps only its end."""
EVIDENCE_LIMIT = 64 << 10
"""So much text after a traceback's head is kept to find the exception in."""
LAST_LINE_LIMIT = 1 << 10
TAIL_LIMIT = 8 << 10
STEPS_THAT_CLEAR_A_TRACEBACK = 3
"""A training that goes on for so many steps has survived the traceback it printed."""
RECENT_STEPS = 50

PHASE_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"init_distributed]", "loading"),
    (b"Loading pipeline components", "loading"),
    (b"using video_clip_mode=", "caching"),
    (b"rouped metadata", "caching"),
    (b"caching latents: ", "caching"),
    (b"caching text embeddings: ", "caching"),
    (b"trainable params: ", "building"),
    (b"Partitioning pipeline stages", "building"),
    (b"Global batch size = ", "training"),
    (b"Running eval", "evaluating"),
    (b"is about to be saved!", "checkpointing"),
    (b"Saving model to directory ", "saving"),
    (b"Started new epoch: ", "training"),
    (b"TRAINING COMPLETE!", "finishing"),
    (b"Manually quitting", "finishing"),
)
STEP = re.compile(rb"steps: (\d{1,15}) loss: (\S+) iter time \(s\): (\S+) samples/sec: (\S+)")
EPOCH = re.compile(rb"Started new epoch: (\d{1,15})(?!\d)")
RESUMED = re.compile(rb"Resuming at epoch: (\d{1,15}), step: (\d{1,15})(?!\d)")
_SAVED = re.compile(rb"Checkpoint global_step(\d{1,15}) is about to be saved!")
_EVERY = re.compile(rb"steps_per_print \.+ (\d{1,9})(?!\d)")
EPOCH_MARKS: tuple[tuple[bytes, re.Pattern[bytes]], ...] = (
    (b"Started new epoch: ", EPOCH),
    (b"Resuming at epoch: ", RESUMED),
    (b"is about to be saved!", _SAVED),
    (b"steps_per_print", _EVERY),
)
_CHECKPOINT = re.compile(rb"Checkpoint (global_step\d+) is about to be saved!")
_BAR = re.compile(rb"(\d{1,3})%\|[^|\r\n]*\| *(\S+/\S+)")
_EVALUATED = re.compile(
    rb"[\r\n] *(?:100%\|[^|\r\n]*\| *(\d+)/\1 \[[^\]\r\n]*\] *[^\r ]|\d+it \[[^\]\r\n]*\] *\n)"
)
"""A bar without a name that is full, or beyond its total and closed; `\\r` would begin one that goes on."""
_BATCH = re.compile(rb"Global batch size = (\d{1,15})(?!\d)")
_TRACEBACK = b"Traceback (most recent call last):"
_CHILD_DIED = re.compile(rb"Process \S*Process-\d+:")
_RETURN_CODE = re.compile(rb"exits with return code = (-?\d{1,9})(?!\d)")

_Mark: TypeAlias = tuple[int, bytes, str]


class Snapshot(Struct, frozen=True):
    """What is known now. Times in seconds, rates in samples per second; None where nothing was printed."""

    phase: str
    detail: str | None
    step: int | None
    first_step: int | None
    epoch: int | None
    loss: float | None
    samples_per_second: float | None
    seconds_per_step: float | None
    steps_per_epoch: int | None
    steps_before_epoch: int | None
    global_batch: int | None
    checkpoint: str | None
    completed: bool
    quit_manually: bool
    rank_exit_code: int | None
    evidence: bytes
    tail: bytes

    @property
    def child_died(self) -> bool:
        """A caching process ended in a traceback: train.py then waits for it for ever."""
        return bool(_CHILD_DIED.search(self.evidence))

    def steps_of(self, epochs: int) -> int | None:
        """The step at which the last of so many epochs ends: with `steps_per_print` above 1, at most."""
        if self.epoch is None or self.steps_per_epoch is None or self.steps_before_epoch is None:
            return None
        return self.steps_before_epoch + (epochs - self.epoch + 1) * self.steps_per_epoch


class Progress:
    """Feed it the log from its first byte on; `snapshot` at any time.

    `anew`: a resume begins the data of its epoch again (`--reset_dataloader`).
    """

    def __init__(self, anew: bool = False) -> None:
        self._carry = b""
        self._tail = b""
        self._phase = "launching"
        self._detail: bytes | None = None
        self._step: int | None = None
        self._first_step: int | None = None
        self._epoch: int | None = None
        self._loss: float | None = None
        self._rate: float | None = None
        self._times: deque[float | None] = deque(maxlen=RECENT_STEPS)
        self._epochs = Epochs(anew)
        self._batch: int | None = None
        self._checkpoint: bytes | None = None
        self._completed = False
        self._quit = False
        self._rank_exit: int | None = None
        self._evidence = b""
        self._last_line = b""
        self._steps_beyond = 0
        """Steps after the kept evidence had reached its limit."""

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the log."""
        text = self._carry + chunk
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self._carry = text[end:][-CARRY_LIMIT:]
        if end:
            self._read(text[:end])

    def finish(self) -> None:
        """Takes the unfinished last line for finished: nothing more will come."""
        text, self._carry = self._carry, b""
        if text:
            self._read(text + b"\n")

    def snapshot(self) -> Snapshot:
        times = [seconds for seconds in self._times if seconds is not None]
        return Snapshot(
            phase=self._phase,
            detail=self._present_detail(),
            step=self._step,
            first_step=self._first_step,
            epoch=self._epoch,
            loss=self._loss,
            samples_per_second=self._rate,
            seconds_per_step=sum(times) / len(times) if times else None,
            steps_per_epoch=self._epochs.length,
            steps_before_epoch=self._epochs.began,
            global_batch=self._batch,
            checkpoint=_text(self._checkpoint),
            completed=self._completed,
            quit_manually=self._quit,
            rank_exit_code=self._rank_exit,
            evidence=self._evidence,
            tail=self._tail + self._carry,
        )

    def _present_detail(self) -> str | None:
        bar = _BAR.search(self._carry)
        said = _text(self._detail) if self._phase in ("loading", "caching", "building") else None
        if bar is None:
            return said
        shown = f"{bar[1].decode()}% ({bar[2].decode(errors='replace')})"
        return f"{said} {shown}" if said else shown

    def _read(self, text: bytes) -> None:
        """`text` ends with a line end."""
        self._tail = (self._tail + text[-TAIL_LIMIT:])[-TAIL_LIMIT:]
        steps = list(STEP.finditer(text))
        resumed = self._read_epochs(text, steps)
        for match in steps[-RECENT_STEPS:]:
            self._read_step(match)
        self._step = self._step if resumed is None else resumed
        if steps and self._first_step is None:
            self._first_step = int(steps[0][1])
        self._read_phase(text, steps[-1].start() if steps else -1)
        self._read_evidence(text)

    def _read_step(self, match: re.Match[bytes]) -> None:
        self._step = int(match[1])
        self._loss = _number(match[2])
        self._rate = _number(match[4])
        self._times.append(_number(match[3]))

    def _read_epochs(self, text: bytes, steps: list[re.Match[bytes]]) -> int | None:
        """Tells `Epochs` of steps and marks in their order.

        Returns the step that a resume begins after, if it is what was said last.
        """
        # From the end, as there it is faster.
        found = [pattern for needle, pattern in EPOCH_MARKS if text.rfind(needle) >= 0]
        marks = [match for pattern in found for match in pattern.finditer(text)]
        starts = [match.start() for match in steps] if marks else []
        told, after = 0, None
        for match in sorted(marks, key=re.Match.start):
            before = bisect_left(starts, match.start())
            self._epochs.printed([int(step[1]) for step in steps[told:before][-2:]])
            told = before
            if match.re is RESUMED:
                self._epoch = int(match[1])
                resumed_after = max(int(match[2]) - 1, 0)
                self._epochs.resumed(self._epoch, resumed_after)
                after = resumed_after if before == len(steps) else None
            elif match.re is EPOCH:
                self._epoch = int(match[1])
                self._epochs.begun(self._epoch)
            elif match.re is _SAVED:
                self._epochs.saved(int(match[1]))
            else:
                self._epochs.every(int(match[1]))
        self._epochs.printed([int(step[1]) for step in steps[told:][-2:]])
        return after

    def _read_phase(self, text: bytes, last_step: int) -> None:
        marks = [(text.rfind(needle), needle, phase) for needle, phase in PHASE_MARKS]
        found: _Mark = max(marks)
        if last_step > found[0]:
            found = (last_step, b"steps: ", "training")
        seen = {needle: at for at, needle, _ in marks if at >= 0}
        if found[0] >= 0:
            self._phase = found[2]
            line = _line_at(text, found[0])
            bar = _BAR.search(line)
            # A bar moves on; what stays is what it is of.
            self._detail = (line[: bar.start()].rstrip(b" :") if bar else line)[:200]
        if self._phase == "evaluating" and _EVALUATED.search(b"\n" + text[max(found[0], 0) :]):
            self._phase = "training"
        self._read_facts(text, seen)

    def _read_facts(self, text: bytes, seen: dict[bytes, int]) -> None:
        """`seen` holds the marks of phases that are in `text`."""
        if b"Global batch size = " in seen and (batch := _last(_BATCH, b"Global batch size = ", text)):
            self._batch = int(batch[1])
            self._epoch = 1 if self._epoch is None else self._epoch
        if b"is about to be saved!" in seen:
            checkpoint = _last(_CHECKPOINT, b"Checkpoint global_step", text)
            self._checkpoint = checkpoint[1] if checkpoint else self._checkpoint
        self._completed = self._completed or b"TRAINING COMPLETE!" in seen
        self._quit = self._quit or b"Manually quitting" in seen

    def _read_evidence(self, text: bytes) -> None:
        """Keeps the text from the first traceback on that the training has not survived.

        The line before its head is kept too: it tells a caching process from a rank.
        """
        code = _last(_RETURN_CODE, b"exits with return code = ", text)
        self._rank_exit = int(code[1]) if code else self._rank_exit
        held = (self._evidence or self._last_line) + text
        self._last_line = text[_piece_start(text, len(text) - 1) :][-LAST_LINE_LIMIT:]
        if _TRACEBACK not in held:
            return
        steps = [match.start() for match in STEP.finditer(held)]
        survived = len(steps) + self._steps_beyond >= STEPS_THAT_CLEAR_A_TRACEBACK
        begin = steps[-STEPS_THAT_CLEAR_A_TRACEBACK:][0] if survived and steps else 0
        at = held.find(_TRACEBACK, begin)
        head = _piece_start(held, max(_piece_start(held, at) - 1, 0))
        self._evidence = held[head : head + EVIDENCE_LIMIT] if at >= 0 else b""
        beyond = head + EVIDENCE_LIMIT
        self._steps_beyond += sum(start >= beyond for start in steps)
        self._steps_beyond = self._steps_beyond if self._evidence and not survived else 0


def _last(pattern: re.Pattern[bytes], needle: bytes, text: bytes) -> re.Match[bytes] | None:
    """The last match; `needle` is the literal that begins it, found in C."""
    at = text.rfind(needle)
    while at >= 0 and not (found := pattern.match(text, at)):
        at = text.rfind(needle, 0, at)
    return found if at >= 0 else None


def _line_at(text: bytes, at: int) -> bytes:
    begin = _piece_start(text, at)
    ends = [end for end in (text.find(b"\n", at), text.find(b"\r", at)) if end >= 0]
    return text[begin : min(ends, default=len(text))]


def _piece_start(text: bytes, at: int) -> int:
    """Where the piece of text (ended by either line end) that holds `at` begins."""
    return max(text.rfind(b"\n", 0, at), text.rfind(b"\r", 0, at)) + 1


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="replace").strip()


def _number(data: bytes) -> float | None:
    try:
        return float(data)
    except ValueError:
        return None
