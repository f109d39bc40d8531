"""The four calls of ControlPilot's Dpipe tab, in its names, defaults, codes and texts.

Why: the tab, and whoever scripted these calls, must not notice what answers them; only that it is right. What
was wrong behind them (logs of the oldest run, "stopped" while processes live, 500 for a strange path) is not
kept.

Source: ControlPilot's contract; the tests quote it line by line.

Known gap: a stop waits at most `STOP_WAIT` by default and then says 202 "stopping".
"""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from dpipectl import forms
from dpipectl.client import Failed
from dpipectl.http import answers, asking, reading
from dpipectl.http.answers import document
from dpipectl.http.asking import ask
from dpipectl.http.daemon import Daemon
from dpiped import messages
from dpiped.errors import DpipedError, Unreachable

MODELS = ("transformer_path", "vae_path", "llm_path", "clip_path")
LIMIT = 500
LARGEST_LIMIT = 100_000
LARGEST_PID = 10**18
"""What is taken for one; no process has any beyond `PIDS_END`."""
PIDS_END = (1 << 31) - 1
STOP_WAIT = 60.0
STOP_LONGEST = 900.0
POLL = 2.0
NOTHING = "No training process tracked."
ANOTHER = "Process not found."


async def validate(request: Request) -> Response:
    """Which of the four model paths lead to nothing."""
    data, sent = await reading.body(request)
    wrong = [
        (name, forms.MISSING if name not in data else "takes text")
        for name in MODELS
        if not isinstance(data.get(name), str)
    ]
    if wrong:
        raise answers.of_fields(wrong)
    asked = messages.FindMissing({name: data[name] for name in MODELS})
    reply = await ask(request, asked, messages.Missing, sent=sent)
    return document({"ok": not reply.missing, "missing": reply.missing})


async def start(request: Request) -> Response:
    """Writes the two config files and starts the training that they describe."""
    form, sent = await asking.form(request)
    # A run that is active is a 400 here, as it always was.
    reply = await ask(
        request, messages.StartForm(form), messages.Started, asking.LAUNCH_WAIT, sent, refused=400
    )
    return document({"status": "started", "pid": reply.pid, "config": reply.written})


async def stop(request: Request) -> Response:
    """Stops the training; answers once no process of it is left."""
    pid = reading.whole(request, "pid", -LARGEST_PID, LARGEST_PID, None)
    how = reading.choice(request, "mode", ("save", "term", "kill"), "term")
    timeout = reading.seconds(request, "timeout", 86400, None)
    wait = reading.seconds(request, "wait", STOP_LONGEST, STOP_WAIT)
    daemon = asking.daemon(request)
    status = await ask(request, messages.GetStatus(), messages.Status)
    if status.run is None:
        return document({"status": "noop", "detail": NOTHING})
    if pid is not None and pid != status.run.pid:
        return document({"status": "noop", "detail": ANOTHER})
    try:
        asked = messages.Stop(how, timeout, status.run.id)  # type: ignore[arg-type]
        stopping = await daemon.ask(asked, messages.Stopping)
    except Failed as error:
        if error.error.code == "refused":
            # It has ended by itself meanwhile: nothing of it is left, which is what was asked for.
            return document({"status": "stopped", "pid": status.run.pid})
        raise answers.of_error(error) from error
    except DpipedError as error:
        raise answers.of_error(error) from error
    ended = await _until_ended(daemon, status.run.id, wait or 0.0)
    if ended is None:
        return document({"status": "stopping", "pid": status.run.pid, "detail": stopping.detail}, 202)
    return document({"status": "stopped", "pid": ended.summary.pid or status.run.pid})


async def logs(request: Request) -> Response:
    """The last lines of the active run, or of the most recent one, or of the run with that pid."""
    limit = reading.whole(request, "limit", 1, LARGEST_LIMIT, LIMIT)
    pid = reading.whole(request, "pid", -LARGEST_PID, LARGEST_PID, None)
    assert limit is not None
    if pid is not None and not 1 <= pid <= PIDS_END:
        return document({"pid": pid, "lines": ()})
    daemon = asking.daemon(request)
    try:
        page = await daemon.ask(messages.ReadLog(pid=pid, limit=limit), messages.LogLines)
        lines = await _rest(daemon, page, limit)
    except Failed as error:
        if error.error.code == "unknown_run":
            return document({"pid": pid, "lines": ()})
        raise answers.of_error(error) from error
    except DpipedError as error:
        raise answers.of_error(error) from error
    return document({"pid": page.pid, "lines": lines})


async def _rest(daemon: Daemon, page: messages.LogLines, limit: int) -> tuple[str, ...]:
    """All the lines asked for, the unfinished one last; a reply of the daemon is bounded."""
    lines = list(page.lines)
    last = page
    while last.lines and len(lines) < limit and not last.current and last.next < page.end and not last.eof:
        request = messages.ReadLog(page.run, after=last.next, limit=limit - len(lines))
        last = await daemon.ask(request, messages.LogLines)
        lines += last.lines
    if last.current:
        lines.append(last.current)
    return tuple(lines[-limit:])


async def _until_ended(daemon: Daemon, run: str, seconds: float) -> messages.RunReply | None:
    """The run's record once it has ended; None if it has not within that time. Raises Problem."""
    until = time.monotonic() + seconds
    while True:
        wait = max(min(until - time.monotonic(), POLL), 0.0)
        try:
            reply = await daemon.ask(messages.WaitRun(run, wait), messages.RunReply, wait)
            if reply.ended:
                return reply
        except Unreachable:
            # A daemon that is being restarted goes on with the stop.
            await asyncio.sleep(min(wait, 0.2))
        except Failed as error:
            # It goes on with the stop, too.
            if error.error.code != "busy":
                raise answers.of_error(error) from error
            await asyncio.sleep(min(wait, 0.2))
        except DpipedError as error:
            raise answers.of_error(error) from error
        if time.monotonic() >= until:
            return None
