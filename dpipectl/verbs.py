"""What each verb does: ask, wait if it must, show.

Why: one function per verb, of the same name as the request it sends, so that a feature is found by its
name on both sides.

Known gap: none.
"""

import argparse
import sys
import time
from typing import Any, TypeVar

import msgspec

from dpipectl import cli
from dpipectl.client import Client, Failed
from dpiped import messages
from dpiped.errors import NotInstalled, Unreachable
from dpiped.messages import AnyReply, AnyRequest

_R = TypeVar("_R")
POLL = 2.0
RELOAD_POLL = 0.05
RELOAD_TIMEOUT = 30.0
PAGE = 100_000


def status(client: Client, options: argparse.Namespace) -> int:
    reply = _ask(client, messages.GetStatus(), messages.Status)
    _show(options, reply, lambda: _render().status(reply))
    return cli.EXIT_OK


def start(client: Client, options: argparse.Namespace) -> int:
    from dpipectl import launching

    return _started(client, options, _ask(client, launching.start(options), messages.Started, wait=90.0))


def validate(client: Client, options: argparse.Namespace) -> int:
    from dpipectl import launching

    reply = _ask(client, launching.validate(options), messages.Validated, wait=30.0)
    document = {"ok": not reply.findings, "findings": reply.findings}
    _show(options, document, lambda: _render().findings(reply.findings))
    return cli.EXIT_INVALID if reply.findings else cli.EXIT_OK


def resume(client: Client, options: argparse.Namespace) -> int:
    from dpipectl import launching

    if options.check:
        return _check_resume(client, options)
    return _started(client, options, _ask(client, launching.resume(options), messages.Started, wait=90.0))


def _check_resume(client: Client, options: argparse.Namespace) -> int:
    from dpipectl import launching

    reply = _ask(client, launching.check_resume(options), messages.Validated, wait=30.0)
    document = msgspec.to_builtins(reply)
    del document["type"]
    _show(options, {"ok": not reply.findings} | document, lambda: _render().resumable(reply))
    return cli.EXIT_INVALID if reply.findings else cli.EXIT_OK


def serve(_: Client, options: argparse.Namespace) -> int:
    try:
        from dpipectl.http import serve as http
    except ModuleNotFoundError as error:
        text = f"`dpipectl serve` needs the package {error.name}"
        raise NotInstalled(text, hint="pip install 'dpiped[http]'") from error
    return http.run(options)


def stop(client: Client, options: argparse.Namespace) -> int:
    how: messages.How = "save" if options.save else "kill" if options.now else "term"
    reply = _ask(client, messages.Stop(how, timeout=options.timeout), messages.Stopping)
    if options.no_wait:
        _show(options, reply, lambda: f"stopping {reply.run}: {reply.detail}")
        return cli.EXIT_OK
    if not options.json:
        print(f"stopping {reply.run}: {reply.detail}", flush=True)
    ended = _until_ended(client, reply.run)
    _show(options, _ending(ended), lambda: _ended_text(ended))
    return cli.EXIT_OK


def save(client: Client, options: argparse.Namespace) -> int:
    until = time.monotonic() + options.timeout
    token: str | None = None
    while True:
        wait = max(min(until - time.monotonic(), POLL), 0.0)
        reply = _ask(client, messages.Save(wait=wait, after=token), messages.Saved, wait=wait)
        token = reply.token
        if reply.checkpoint or time.monotonic() >= until:
            break
    answer = {"run": reply.run, "checkpoint": reply.checkpoint}
    if reply.checkpoint is None:
        text = f"the trainer has not saved within {options.timeout:g} s; it does so at the end of a step"
        cli.fail("refused", text, cli.EXIT_REFUSED, as_json=options.json)
    _show(options, answer, lambda: f"saved {reply.checkpoint} of run {reply.run}")
    return cli.EXIT_OK


def logs(client: Client, options: argparse.Namespace) -> int:
    from dpipectl import follow

    if options.follow and options.json:
        cli.fail("usage", "--json and --follow don't go together", cli.EXIT_USAGE, as_json=True)
    if options.raw and options.json:
        cli.fail("usage", "--json and --raw don't go together", cli.EXIT_USAGE, as_json=True)
    if not 1 <= options.lines <= PAGE:
        text = f"-n takes a number from 1 to {PAGE}; --all shows everything"
        cli.fail("usage", text, cli.EXIT_USAGE, as_json=options.json)
    if options.raw:
        tail = None if options.all else options.lines
        first = _ask(client, messages.ReadRaw(options.run, tail=tail), messages.RawLog)
        follow.raw_log(client, first, options.follow)
        return cli.EXIT_OK
    lines = _lines(client, options)
    if options.json:
        _print_json(
            {
                "run": lines.run,
                "lines": lines.lines,
                "current": lines.current,
                "next": lines.next,
                "eof": lines.eof,
            }
        )
    elif options.follow:
        follow.log_lines(client, lines)
    else:
        for line in (*lines.lines, *([lines.current] if lines.current else [])):
            cli.tell(line)
    return cli.EXIT_OK


def runs(client: Client, options: argparse.Namespace) -> int:
    if options.limit < 1:
        cli.fail("usage", "-n takes a number from 1 on", cli.EXIT_USAGE, as_json=options.json)
    reply = _ask(client, messages.ListRuns(min(options.limit, 10000)), messages.Runs)
    _show(options, reply.runs, lambda: _render().runs(reply.runs))
    return cli.EXIT_OK


def show(client: Client, options: argparse.Namespace) -> int:
    reply = _ask(client, messages.ShowRun(options.run), messages.RunReply)
    _show(options, _run_document(reply), lambda: _render().run(reply))
    return cli.EXIT_OK


def wait(client: Client, options: argparse.Namespace) -> int:
    until = time.monotonic() + options.timeout if options.timeout is not None else float("inf")
    run = options.run
    while True:
        left = max(min(until - time.monotonic(), POLL), 0.0)
        reply = client.patient(messages.WaitRun(run, wait=left), left, until)
        assert isinstance(reply, messages.RunReply)
        # From now on this one is meant, also if another is started meanwhile.
        run = reply.summary.id
        if reply.ended:
            break
        if time.monotonic() >= until:
            text = f"run {run} has not ended within {options.timeout:g} s"
            cli.fail("timeout", text, cli.EXIT_NOT_COMPLETED, as_json=options.json)
    _show(options, _ending(reply), lambda: _ended_text(reply))
    return _code(reply)


def example(_: Client, options: argparse.Namespace) -> int:
    from dpipectl.example import write

    config = write(options)
    text = f"wrote {config}; train on it with:\n  dpipectl start --config {config} --follow"
    _show(options, {"config": str(config)}, lambda: text)
    return cli.EXIT_OK


def reload(client: Client, options: argparse.Namespace) -> int:
    before = _ask(client, messages.Reload(), messages.Reloading)
    until = time.monotonic() + RELOAD_TIMEOUT
    while (after := _hello(client)) is None or after.started_at == before.started_at:
        if time.monotonic() > until:
            # Whatever it answers now is what is wrong.
            _ask(client, messages.Hello(), messages.Welcome)
            text = f"the daemon has not come back within {RELOAD_TIMEOUT:g} s; its log says why"
            cli.fail("unreachable", text, cli.EXIT_UNREACHABLE, as_json=options.json)
        time.sleep(RELOAD_POLL)
    answer = {"pid": before.pid, "version": after.version}
    _show(options, answer, lambda: f"dpiped {after.version} is back, pid {after.pid}")
    return cli.EXIT_OK


def _hello(client: Client) -> messages.Welcome | None:
    """Who answers; None while nobody does, or only the old daemon, of another protocol."""
    try:
        return _ask(client, messages.Hello(), messages.Welcome)
    except Failed:
        return None
    except Unreachable:
        client.close()
        return None


def _started(client: Client, options: argparse.Namespace, reply: messages.Started) -> int:
    if not options.follow:
        _show(options, reply, lambda: _started_text(reply))
        return cli.EXIT_OK
    from dpipectl import follow

    if options.json:
        ended = _until_ended(client, reply.run)
        _print_json(_ending(ended))
        return _code(ended)
    print(_started_text(reply), flush=True)
    try:
        ended = follow.progress(client, reply.run)
    except KeyboardInterrupt:
        cli.tell("the training goes on; `dpipectl stop` ends it, `dpipectl logs -f` shows it")
        return cli.EXIT_INTERRUPTED
    cli.tell(_ended_text(ended))
    return _code(ended)


def _lines(client: Client, options: argparse.Namespace) -> messages.LogLines:
    """What is there now. A reply is bounded, so a long log comes in pages; a follower reads on by itself."""
    after, left = (0, sys.maxsize) if options.all else (None, options.lines)
    page = _ask(client, messages.ReadLog(options.run, after=after, limit=min(left, PAGE)), messages.LogLines)
    pages = [page]
    left -= len(page.lines)
    while page.lines and left > 0 and not page.eof and not options.follow:
        request = messages.ReadLog(page.run, after=page.next, limit=min(left, PAGE))
        page = _ask(client, request, messages.LogLines)
        pages.append(page)
        left -= len(page.lines)
    lines = tuple(line for each in pages for line in each.lines)
    return msgspec.structs.replace(page, lines=lines)


def _until_ended(client: Client, run: str) -> messages.RunReply:
    from dpipectl import follow

    return follow.ended(client, run)


def _started_text(reply: messages.Started) -> str:
    again = f", resumed from {reply.resumed_from}" if reply.resumed_from else ""
    again += f" at {reply.checkpoint}" if reply.checkpoint else ""
    changes = f"{_render().changes(reply.resumed_from, reply.changes)}\n" if reply.changes else ""
    warnings = "".join(f"\nwarning: {text}" for text in reply.warnings)
    return f"{changes}started run {reply.run} (pid {reply.pid}){again}{warnings}"


def _ended_text(reply: messages.RunReply) -> str:
    summary = reply.summary
    steps = f" at step {summary.step}" if summary.step is not None else ""
    why = f": {summary.reason}" if summary.reason else ""
    where = f"\n  output        {reply.train_dir}" if reply.train_dir else ""
    return f"run {summary.id} {summary.state}{steps}{why}{where}"


def _ending(reply: messages.RunReply) -> dict[str, Any]:
    summary = reply.summary
    return {
        "run": summary.id,
        "outcome": summary.state,
        "reason": summary.reason,
        "exit_code": summary.exit_code,
        "signal": summary.signal,
        "step": summary.step,
        "train_dir": reply.train_dir,
    }


def _run_document(reply: messages.RunReply) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(reply)
    del document["type"]
    summary: dict[str, Any] = document.pop("summary")
    return summary | document


def _code(reply: messages.RunReply) -> int:
    return cli.EXIT_OK if reply.summary.state == "completed" else cli.EXIT_NOT_COMPLETED


def _ask(client: Client, request: AnyRequest, kind: type[_R], wait: float = 0.0) -> _R:
    reply: AnyReply = client.call(request, wait)
    assert isinstance(reply, kind), f"{type(request).__name__} was answered with {type(reply).__name__}"
    return reply


def _show(options: argparse.Namespace, document: Any, text: Any) -> None:
    if options.json:
        _print_json(document)
    else:
        cli.tell(text())


def _print_json(document: Any) -> None:
    plain = msgspec.to_builtins(document)
    if isinstance(plain, dict):
        plain.pop("type", None)
    cli.document(msgspec.json.encode(plain))


def _render() -> Any:
    from dpipectl import render

    return render
