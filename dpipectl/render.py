"""How things look in a terminal: pure functions from messages to text.

Why: what a person reads must not be spread over the verbs, and must be testable without a daemon.
The same facts stand in `--json`; nothing is said here that is not there.

Known gap: widths are counted in characters, so wide scripts shift the columns.
"""

import time

from dpiped import messages


def status(reply: messages.Status) -> str:
    """Some lines: state, progress, last run, TensorBoard, GPUs, notices."""
    lines = [_headline(reply)]
    if reply.run is not None:
        lines += _run_lines(reply.run)
    if reply.last_run is not None:
        lines.append(_field("last run", outcome(reply.last_run)))
    board = reply.tensorboard
    shown = (board.public_url or board.url or board.state, board.detail)
    lines.append(_field("tensorboard", " ".join(filter(None, shown))))
    lines += [_field(f"GPU {each.index}", gpu(each)) for each in reply.gpus]
    lines += [_field("notice", notice) for notice in reply.notices]
    return "\n".join(lines)


def outcome(last: messages.LastRun) -> str:
    """`ID completed`, or with the reason and the exit code."""
    code = f"exit code {last.exit_code}" if last.exit_code else f"signal {last.signal}" if last.signal else ""
    return (
        f"{last.id} {last.outcome}"
        + "".join(f" ({text})" for text in (code,) if text)
        + _because(last.reason)
    )


def progress(run: messages.ActiveRun) -> str:
    """One line: what is going on and how far it is."""
    parts = [run.phase]
    if run.step is not None:
        parts.append(f"step {run.step}" + (f"/{run.total_steps}" if run.total_steps else ""))
    if run.epoch is not None:
        parts.append(f"epoch {run.epoch}" + (f"/{run.epochs}" if run.epochs else ""))
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4f}")
    if run.samples_per_second is not None:
        parts.append(f"{run.samples_per_second:.4g} samples/s")
    if run.eta_seconds is not None:
        parts.append(f"{duration(run.eta_seconds)} left")
    if run.detail and run.step is None:
        parts.append(run.detail)
    return "  ".join(parts)


def gpu(found: messages.Gpu) -> str:
    """`NVIDIA A100  18.2 of 80.0 GiB, 97 %`."""
    used, total = found.memory_used / 2**30, found.memory_total / 2**30
    busy = "" if found.utilization is None else f", {found.utilization} %"
    return f"{found.name}  {used:.1f} of {total:.1f} GiB{busy}"


def bar(run: messages.ActiveRun, width: int) -> str:
    """A progress bar of at most `width` columns, with the progress line beside it."""
    text = progress(run)
    if not run.total_steps or run.step is None:
        return text[:width]
    cells = max(min(width - len(text) - 8, 30), 0)
    done = min(run.step / run.total_steps, 1.0)
    drawn = "█" * round(done * cells) + "░" * (cells - round(done * cells))
    return f"{drawn} {done:4.0%} {text}"[:width] if cells >= 5 else f"{done:4.0%} {text}"[:width]


def runs(found: tuple[messages.RunSummary, ...]) -> str:
    """A table, newest first."""
    if not found:
        return "no runs yet"
    rows: list[tuple[str, ...]] = [("RUN", "OUTCOME", "STARTED", "TOOK", "STEP", "LOSS", "CONFIG")]
    rows += [_run_row(run) for run in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        lines.append(
            "  ".join([text.ljust(width) for text, width in zip(row, widths, strict=False)] + [row[-1]])
        )
    return "\n".join(lines)


def run(reply: messages.RunReply) -> str:
    """All that is known of one run."""
    summary = reply.summary
    fields = [
        ("outcome", summary.state + _because(summary.reason)),
        ("exit", _exit(summary)),
        ("started", moment(summary.started_at)),
        ("ended", moment(summary.ended_at)),
        ("step", _reached(summary)),
        ("config", summary.config),
        ("resumed from", summary.resumed_from),
        ("run directory", reply.run_dir),
        ("output", reply.train_dir or reply.output_dir),
        ("checkpoint", reply.checkpoint or "none"),
        ("peak memory", f"{reply.peak_memory_bytes / 2**20:.0f} MiB" if reply.peak_memory_bytes else None),
        ("directory", reply.cwd),
        ("command", " ".join(reply.argv)),
        *((f"env {name}", value) for name, value in reply.env.items()),
    ]
    return "\n".join([summary.id] + [_field(name, text) for name, text in fields if text])


def findings(found: tuple[messages.Finding, ...]) -> str:
    """What is wrong, a line each, and below it the way out."""
    if not found:
        return "nothing is wrong with it; `dpipectl start` with the same words starts it"
    lines = []
    for each in found:
        named = each.message.startswith(each.field)
        lines.append(each.message if named else f"{each.field}: {each.message}")
        lines += [f"  {each.hint}"] if each.hint else []
    return "\n".join(lines)


def changes(run: str | None, found: tuple[messages.Difference, ...]) -> str:
    """What is different in the config, a line each."""
    lines = [f"different from run {run}:"]
    for each in found:
        before, after = ("(not set)" if text is None else _short(text) for text in (each.before, each.after))
        lines.append(f"  {each.file:8}  {each.key}: {before} → {after}")
    return "\n".join(lines)


def resumable(reply: messages.Validated) -> str:
    """What a resume would do, or what is wrong."""
    if reply.findings:
        return findings(reply.findings)
    different = changes(reply.resumed_from, reply.changes) if reply.changes else "no difference in the config"
    warnings = (f"warning: {text}" for text in reply.warnings)
    head = f"it would go on from {reply.checkpoint} of run {reply.resumed_from}; nothing was started"
    return "\n".join((different, *warnings, head))


def _short(text: str) -> str:
    """A value may be a whole list of folders."""
    return text if len(text) <= 100 else f"{text[:99]}…"


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def moment(at: float | None) -> str:
    """Local time, or a dash."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else "-"


def _headline(reply: messages.Status) -> str:
    if reply.run is None:
        return f"{reply.state}"
    return f"{reply.state}  run {reply.run.id}" + (f"  pid {reply.run.pid}" if reply.run.pid else "")


def _run_lines(active: messages.ActiveRun) -> list[str]:
    lines = [_field("progress", progress(active))]
    if active.elapsed_seconds is not None:
        lines.append(_field("running for", duration(active.elapsed_seconds)))
    if active.train_dir:
        lines.append(_field("output", active.train_dir))
    if active.checkpoint:
        lines.append(_field("checkpoint", active.checkpoint))
    if active.stopping:
        lines.append(_field("stopping", active.stopping))
    if active.warning:
        lines.append(_field("warning", active.warning))
    return lines


def _run_row(found: messages.RunSummary) -> tuple[str, ...]:
    ended = found.ended_at or (time.time() if found.state == "running" else None)
    return (
        found.id,
        found.state,
        moment(found.started_at),
        duration(ended - found.started_at) if found.started_at and ended else "-",
        "-" if found.step is None else str(found.step),
        "-" if found.loss is None else f"{found.loss:.4f}",
        found.config,
    )


def _reached(summary: messages.RunSummary) -> str:
    known = (("epoch", summary.epoch), ("loss", summary.loss))
    more = ", ".join(f"{name} {value}" for name, value in known if value is not None)
    return "-" if summary.step is None else f"{summary.step}" + (f" ({more})" if more else "")


def _exit(summary: messages.RunSummary) -> str | None:
    if summary.signal is not None:
        return f"signal {summary.signal}"
    return None if summary.exit_code is None else f"code {summary.exit_code}"


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _field(name: str, text: str | None) -> str:
    return f"  {name:<14}{text}"
