"""How a run ended, and why, in words a person can act on. Pure.

Why: deepspeed's exit code alone tells too little: it is 0 when its launcher was killed, 0 after
`save_quit`, 247 for a rank that the kernel killed and never comes when a caching process died. The
conclusion is drawn from three things together: the exit record, the stop that was asked for, and what
the training printed.

Known gap: the texts of exceptions are passed on as they are; only the most common get a hint.
"""

import re
import signal

import msgspec

from dpiped.checkpoints import Found
from dpiped.logs import shown_all
from dpiped.messages import OutcomeName
from dpiped.progress import Snapshot
from dpiped.rundir import Concluded, Exit, StopAsked

_EXCEPTION = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Timeout|Full|Empty)?(?::|$)"
)
_HEAD = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
RANK_PREFIX = re.compile(r"^\[rank(\d+)\]: ?")
_ARGPARSE = re.compile(r"[\w./-]+: error: .+")
_PORT = re.compile(r"port: (\d+)")
_DROPPED_OUT = (
    ("WARNING: You have set a lot of resolutions", "more than 3 resolutions: train.py quits at once"),
)
LINE_LIMIT = 500
"""So much of the line is recorded: the record has to fit into the room reserved for it."""
_RANK_ENDED = "exits with return code"
SIGKILL_EXITS = (247, 137)
"""-9 of a rank as deepspeed (256 - 9) and as a shell (128 + 9) pass it on."""


def conclude(
    exit_: Exit | None,
    stop: StopAsked | None,
    said: Snapshot,
    completes: bool = True,
    on_disk: Found | None = None,
) -> Concluded:
    """Outcome and reason. `completes` is False for what prints no completion line (`--cache_only`).

    `on_disk` is what was found in the training's directory, None if that could not be looked at. It counts,
    not what was printed: from 0.19 on deepspeed does not announce checkpoints unless it is told to, and one
    that was announced need not have been written.
    """
    if on_disk is not None:
        said = msgspec.structs.replace(said, checkpoint=on_disk.tag)
    outcome, reason = _judge(exit_, stop, said, completes)
    return Concluded(
        outcome=outcome,
        reason=reason,
        at=exit_.at if exit_ else None,
        step=said.step,
        epoch=said.epoch,
        loss=said.loss,
        checkpoint=said.checkpoint,
        line=failure_line(said) if outcome in ("failed", "unknown") else None,
    )


def failure_line(said: Snapshot) -> str | None:
    """The line that says what was wrong: the exception, train.py's own word, the launcher's, the last one."""
    lines = _lines(said.tail)
    killed = (said.rank_exit_code or 0) < 0
    found = (
        exception_line(said.evidence)
        or next((line for line in lines if _refuses(line) and not killed), "")
        or next((line for line in reversed(lines) if _RANK_ENDED in line), "")
        or next((line for line in reversed(lines) if line), "")
    )
    return found[:LINE_LIMIT] or None


def _judge(
    exit_: Exit | None, stop: StopAsked | None, said: Snapshot, completes: bool
) -> tuple[OutcomeName, str | None]:
    if exit_ is not None and exit_.error is not None:
        return "failed", exit_.error
    if said.completed:
        return "completed", _despite(exit_, stop, said)
    if stop is not None and stop.fault and said.quit_manually:
        return "stopped", f"stopped with a checkpoint: {said.checkpoint or 'none was found'}; {stop.fault}"
    # After a stop a rank's last traceback may be the stop's own doing; what was known before is not.
    hung = stop.fault if stop is not None and (stop.fault or not said.child_died) else hang(said)
    if hung is not None:
        ended = stop is not None or (exit_ is not None and exit_.signal is not None)
        return "failed", f"{hung}; the run hung and had to be ended" if ended else hung
    if exit_ is not None and exit_.code == 0 and not completes:
        return "completed", None
    if said.quit_manually and (exit_ is None or exit_.code == 0):
        return "stopped", f"stopped with a checkpoint: {said.checkpoint or 'none was found'}"
    if stop is not None:
        return "stopped", _stopped(stop, said)
    if exit_ is None:
        return "unknown", f"no exit record: the runner or the machine went down{_error_before(said)}"
    if exit_.code is None and exit_.signal is None:
        return "unknown", f"the runner was killed, so nobody saw the exit code{_error_before(said)}"
    return _failed(exit_, said)


def failing(said: Snapshot) -> str | None:
    """Why the run is about to fail: deepspeed has told a rank's exit, and takes seconds to end itself."""
    if not said.rank_exit_code:
        return None
    if said.rank_exit_code < 0:
        return _killed(-said.rank_exit_code)
    line = exception_line(said.evidence)
    return _explain(line) if line else f"a training process ended with exit code {said.rank_exit_code}"


def hang(said: Snapshot) -> str | None:
    """What is known to leave train.py waiting for ever: a traceback before the training has begun.

    While it caches, neither the caching process nor the rank notices the other's death. None if nothing
    of the kind was printed.
    """
    line = exception_line(said.evidence)
    if not line or line.startswith("KeyboardInterrupt"):
        return None
    if said.child_died and said.first_step is None:
        return f"caching died: {_explain(line)}"
    return _explain(line) if said.phase == "caching" else None


def _despite(exit_: Exit | None, stop: StopAsked | None, said: Snapshot) -> str | None:
    """What was wrong with the end of a run that had said that it was complete: all is written by then."""
    if stop is not None and stop.fault:
        return f"it had completed, but did not end by itself: {stop.fault}"
    if exit_ is not None and exit_.code == 0:
        return None
    if stop is not None:
        return f"it had completed; stopped by {stop.by} before its processes had ended"
    if exit_ is None:
        return (
            "it had completed; no exit record: the runner or the machine went down, so look whether the last "
            "files that it wrote are whole"
        )
    if exit_.code is None and exit_.signal is None:
        return "its runner was killed, so nobody saw the exit code"
    return f"it had completed; after that, {_why_failed(exit_, said)}"


def _error_before(said: Snapshot) -> str:
    line = exception_line(said.evidence)
    return f"; before that it printed: {line}" if line else ""


def _stopped(stop: StopAsked, said: Snapshot) -> str:
    # Somebody may be quicker than deepspeed, which takes seconds to end after the death of a rank.
    before = f"; before that, {stop.failing}" if stop.failing else ""
    if said.checkpoint is None:
        return f"stopped by {stop.by}; no checkpoint was written{before}"
    return f"stopped by {stop.by}; last checkpoint: {said.checkpoint}{before}"


def _failed(exit_: Exit, said: Snapshot) -> tuple[OutcomeName, str]:
    if exit_.signal == signal.SIGTERM or said.tail.rstrip().endswith(b"received SIGTERM, exiting"):
        return "stopped", "ended by a SIGTERM that did not come from dpiped"
    if exit_.signal == signal.SIGINT:
        return "stopped", "interrupted by a SIGINT that did not come from dpiped"
    return "failed", _why_failed(exit_, said)


def _why_failed(exit_: Exit, said: Snapshot) -> str:
    if said.rank_exit_code is not None and said.rank_exit_code < 0:
        return _killed(-said.rank_exit_code)
    if said.evidence and (line := exception_line(said.evidence)):
        return _explain(line)
    if exit_.signal is not None:
        return f"the launcher was killed by {_signal_name(exit_.signal)}"
    if exit_.code in SIGKILL_EXITS:
        return _killed(signal.SIGKILL)
    lines = _lines(said.tail)
    for needle, reason in _DROPPED_OUT:
        if any(needle in line for line in lines):
            return reason
    if exit_.code == 0:
        return "exit code 0, but the training did not complete: " + (
            "the launcher was killed and its ranks were left behind" if exit_.leftovers else "it ended early"
        )
    if argparse := next(filter(None, map(_ARGPARSE.search, lines)), None):
        return argparse[0]
    return f"exit code {exit_.code}; the last line was: {last_line(said.tail) or '(nothing printed)'}"


def _refuses(line: str) -> bool:
    """Does train.py say by this line, without a traceback, why it quits?"""
    return any(needle in line for needle, _ in _DROPPED_OUT) or _ARGPARSE.search(line) is not None


def _killed(number: int) -> str:
    why = ", often by the kernel for lack of memory" if number == signal.SIGKILL else ""
    return f"a training process was killed ({_signal_name(number)}, -{number}){why}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _explain(line: str) -> str:
    if "EADDRINUSE" in line or "address already in use" in line:
        port = _PORT.search(line)
        return f"the master port{' ' + port[1] if port else ''} is taken by another process: {line}"
    if "No slot " in line:
        return f"a GPU that was asked for is not there: {line}"
    if "out of memory" in line.lower():
        return f"out of GPU memory: {line}"
    return line


def exception_line(evidence: bytes) -> str:
    """The line that names the exception of the first traceback; "" if none is whole."""
    lines = _shown(evidence)
    head = next((i for i, line in enumerate(lines) if _HEAD in line), None)
    if head is None:
        return ""
    prefix = RANK_PREFIX.match(lines[head])
    found, chained = "", True
    for line in lines[head:]:
        if prefix and not line.startswith(prefix[0].rstrip()):
            continue
        text = RANK_PREFIX.sub("", line)
        if _HEAD in text and chained:
            found, chained = "", False
        elif text.startswith(_CHAINED):
            chained = True
        elif not found and text and not text[0].isspace():
            # The first line that is not indented ends the stack; what follows is not of the traceback.
            found = text.strip() if _EXCEPTION.match(text) else found
    return found[:1000]


def last_line(tail: bytes) -> str:
    """The last line that is not empty, cut to 300 characters."""
    return next((line for line in reversed(_lines(tail)) if line), "")[:300]


def _lines(tail: bytes) -> list[str]:
    return [line.strip() for line in _shown(tail)]


def _shown(text: bytes) -> list[str]:
    """Without colours; what a progress bar has overwritten is a line of its own."""
    return shown_all(text.replace(b"\r", b"\n"))
