"""The command line: what the words mean, and which request each verb becomes.

Why: scripts rely on three things, so they are decided here, once: with `--json` exactly one JSON
document goes to stdout (errors too), the exit code says what happened, and a usage error names the
word. Everything a verb needs beyond that is imported when the verb runs: `dpipectl status` must feel
instant.

Known gap: options are not completed in the shell.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

EXIT_OK = 0
EXIT_NOT_COMPLETED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_REFUSED = 4
EXIT_INVALID = 5
EXIT_INTERRUPTED = 130
EXIT_CLOSED = 141
"""As of a program that SIGPIPE ends: the reader of what is written went away before the end was known."""
EXIT_CODES = {
    "unreachable": EXIT_UNREACHABLE,
    "refused": EXIT_REFUSED,
    "busy": EXIT_REFUSED,
    "invalid": EXIT_INVALID,
    "invalid_form": EXIT_INVALID,
    "unknown_run": EXIT_INVALID,
    "bad_request": EXIT_INVALID,
    "not_installed": EXIT_INVALID,
    "settings": EXIT_INVALID,
    "run_damaged": EXIT_INVALID,
}
"""By error code; anything else is 1."""

EPILOG = """\
exit codes: 0 ok; 1 the run did not complete (start --follow, wait, resume --follow) or the daemon failed;
2 usage; 3 no daemon; 4 refused (a run is active, or none is); 5 invalid input, the field is named;
130 interrupted (Ctrl-C); 141 nobody reads the output any more, and the end is not known.

examples:
  dpipectl start --config /workspace/configs/flux.toml --follow
  dpipectl status
  dpipectl logs -f
  dpipectl stop --save
  dpipectl resume
"""


class Parser(argparse.ArgumentParser):
    """Usage errors go through `fail`, so that `--json` holds for them too."""

    as_json = False
    """Set on the class for one command line: the parsers of the verbs need it as well."""
    answered = False
    """The document of that command line was written."""

    def error(self, message: str) -> NoReturn:
        fail("usage", f"{message} (see {self.prog} --help)", EXIT_USAGE, as_json=Parser.as_json)


def fail(
    code: str, message: str, status: int, *, as_json: bool, field: str | None = None, hint: str | None = None
) -> NoReturn:
    """Says it on stderr, or as the one JSON document on stdout, and ends with `status`."""
    if as_json:
        document(error_document(code, message, field=field, hint=hint))
    else:
        tell(f"dpipectl: {message}" + (f"\n          {hint}" if hint else ""), to=sys.stderr)
    raise SystemExit(status)


def tell(text: str, to: TextIO | None = None) -> None:
    """The last words on standard output. Who does not listen any more still gets the exit code."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=to)


def document(text: bytes) -> None:
    """Writes the one document of `--json`."""
    Parser.answered = True
    with contextlib.suppress(BrokenPipeError):
        # JSON is UTF-8, whatever the terminal speaks.
        sys.stdout.buffer.write(text + b"\n")


def error_document(code: str, message: str, *, field: str | None = None, hint: str | None = None) -> bytes:
    import json

    error = {"code": code, "message": message, "field": field, "hint": hint}
    return json.dumps({"error": error}).encode()


def build(chosen: str | None = None) -> Parser:
    """The parser. Given the verb that was chosen, only that verb's options are built: it is much faster."""
    parser = Parser(
        prog="dpipectl",
        allow_abbrev=False,
        description="Starts, watches, stops and resumes the training that dpiped owns.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, errors too")
    parser.add_argument("--version", action="store_true", help="show the client's version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)
    for name, (text, add_options, examples) in VERBS.items():
        if chosen in VERBS and name != chosen:
            continue
        verb = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add_options(verb)
        if verb.get_default("takes_args"):
            verb.usage = verb.format_usage().removeprefix("usage: ").rstrip() + " [-- ARGUMENT ...]"
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Raises SystemExit(2) for a usage error, SystemExit(0) after --help or --version."""
    # argparse would mix what follows `--` with the verb's own words.
    at = words.index("--") if "--" in words else len(words)
    ours, args = list(words[:at]), list(words[at + 1 :])
    Parser.as_json, Parser.answered = "--json" in ours, False
    chosen = next((word for word in ours if not word.startswith("-")), None)
    parser = build(chosen)
    options = parser.parse_args(ours)
    options.args = args
    if args and not getattr(options, "takes_args", False):
        parser.error("only start, validate and resume take arguments for train.py after --")
    if options.verb in ("start", "validate"):
        from dpipectl.launching import misuse

        if text := misuse(options):
            Parser(prog=f"dpipectl {options.verb}").error(text)
    if options.version:
        import dpiped

        if options.json:
            document(f'{{"version": "{dpiped.__version__}"}}'.encode())
        else:
            tell(f"dpipectl {dpiped.__version__}")
        raise SystemExit(EXIT_OK)
    if options.verb is None:
        if options.json:
            parser.error("a verb is missing")
        parser.print_help()
        raise SystemExit(EXIT_USAGE)
    return options


def _run_option(verb: argparse.ArgumentParser, *, required: bool = False, what: str) -> None:
    help_text = f"{what} (its id, a part of the id, or `last`)"
    verb.add_argument("run", metavar="RUN", nargs=None if required else "?", help=help_text)


def _launch_options(verb: argparse.ArgumentParser, num_gpus: str) -> None:
    verb.add_argument("--num-gpus", type=int, metavar="N", help=f"how many GPUs (default: {num_gpus})")
    verb.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for the training; repeatable",
    )
    verb.set_defaults(takes_args=True)


def _start(verb: argparse.ArgumentParser) -> None:
    _training_options(verb)
    _launch_options(verb, "DIFFPIPE_NUM_GPUS of the daemon")
    verb.add_argument("--follow", action="store_true", help="show the progress until the run ends")


def _validate(verb: argparse.ArgumentParser) -> None:
    _training_options(verb)
    _launch_options(verb, "DIFFPIPE_NUM_GPUS of the daemon")


def _training_options(verb: argparse.ArgumentParser) -> None:
    from dpipectl.launching import FLAGS
    from dpiped.form_help import HELP

    verb.add_argument("--config", metavar="FILE", help="the training TOML")
    verb.add_argument("--form", metavar="FILE", help="a form, JSON or TOML (*.toml), instead of a config")
    fields = verb.add_argument_group("fields of the form, over those of the file")
    for name in FLAGS:
        flag = f"--{name.replace('_', '-')}"
        fields.add_argument(flag, dest=name, metavar="X", help=HELP[name].text.replace("%", "%%"))
    fields.add_argument(
        "--set",
        dest="fields",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field of the form; repeatable",
    )


def _resume(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", nargs="?", help="which run to go on from (default: the last one)")
    verb.add_argument("--config", metavar="FILE", help="another training TOML (default: the run's own)")
    verb.add_argument(
        "--check",
        action="store_true",
        help="say what it would go on from, and what differs in the config; starts nothing",
    )
    _launch_options(verb, "as many as the run had")
    verb.add_argument("--follow", action="store_true", help="show the progress until the run ends")


def _stop(verb: argparse.ArgumentParser) -> None:
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--save", action="store_true", help="let the trainer write a checkpoint first")
    how.add_argument("--now", action="store_true", help="SIGKILL at once")
    verb.add_argument("--timeout", type=float, metavar="S", help="seconds before the next, harder step")
    verb.add_argument("--no-wait", action="store_true", help="return once the stop is under way")


def _logs(verb: argparse.ArgumentParser) -> None:
    _run_option(verb, what="which run; default: the active or the last one")
    verb.add_argument(
        "-n", type=int, default=50, metavar="N", dest="lines", help="the last N lines (default 50)"
    )
    verb.add_argument("--all", action="store_true", help="from the first line on")
    verb.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    verb.add_argument(
        "--raw", action="store_true", help="the bytes as printed, with progress bars and colours"
    )


def _wait(verb: argparse.ArgumentParser) -> None:
    _run_option(verb, what="which run; default: the active or the last one")
    verb.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds")


def _save(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="give up after S seconds (600)"
    )


def _show(verb: argparse.ArgumentParser) -> None:
    _run_option(verb, required=True, what="which run")


def _runs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-n", type=int, default=20, metavar="N", dest="limit", help="the newest N (default 20)")


def _example(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("directory", metavar="DIR", help="gets data/, training.toml and dataset.toml")
    verb.add_argument("--output-dir", metavar="DIR", help="where trainings go (default: DIR/output)")
    verb.add_argument(
        "--length",
        choices=("quick", "demo", "full"),
        default="demo",
        help="quick: seconds, tests the machinery; demo: a minute or two (default); full: five or more",
    )
    verb.add_argument("--images", type=int, metavar="N", help="how many pictures")
    verb.add_argument("--size", type=int, metavar="N", help="their side in pixels (32)")
    verb.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal pictures (0)")
    verb.add_argument("--only", metavar="CONCEPT", help="show only this shape or colour")
    verb.add_argument("--without", metavar="CONCEPT", help="show all but this shape or colour")
    verb.add_argument("--base", metavar="DIR", help="train an adapter on this saved model or run directory")


def _serve(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--host", metavar="ADDRESS", help="where to listen (DIFFPIPE_HTTP_HOST; 127.0.0.1)")
    verb.add_argument("--port", type=int, metavar="N", help="on which port (DIFFPIPE_HTTP_PORT; 7878)")
    verb.add_argument(
        "--unix", metavar="PATH", help="on a Unix socket instead, for a proxy (DIFFPIPE_HTTP_SOCKET)"
    )
    verb.add_argument(
        "--token-file",
        metavar="FILE",
        help="its first line is the token that clients have to send (DIFFPIPE_HTTP_TOKEN_FILE)",
    )


def _nothing(_: argparse.ArgumentParser) -> None:
    pass


VERBS: dict[str, tuple[str, Any, str]] = {
    "start": (
        "start a training",
        _start,
        "  dpipectl start --config /workspace/configs/flux.toml\n"
        "  dpipectl start --config flux.toml --follow --num-gpus 2\n"
        "  dpipectl start --config flux.toml --env HF_HOME=/workspace/hf -- --regenerate_cache\n"
        "  dpipectl start --form form.json --epochs 50 --set learning_rate=1e-4\n"
        "what follows -- goes to train.py",
    ),
    "validate": (
        "say everything that is wrong with a config or a form; starts nothing",
        _validate,
        "  dpipectl validate --config /workspace/configs/flux.toml\n"
        "  dpipectl validate --form form.toml --set min_ar=0.75\n"
        "exit code 5 if anything is wrong",
    ),
    "serve": (
        "serve ControlPilot's HTTP calls and more, as a client of the daemon",
        _serve,
        "  dpipectl serve                         on http://127.0.0.1:7878/dpipe/\n"
        "  dpipectl serve --port 7900\n"
        "  dpipectl serve --host 0.0.0.0 --token-file /etc/dpiped.token\n"
        "stops with Ctrl-C or SIGTERM; the training does not notice",
    ),
    "stop": (
        "stop the training; returns when no process of it is left",
        _stop,
        "  dpipectl stop --save            checkpoint first, then stop\n"
        "  dpipectl stop                   SIGTERM, then SIGKILL what is left\n"
        "  dpipectl stop --save --timeout 60",
    ),
    "save": ("write a checkpoint now and go on training", _save, "  dpipectl save"),
    "status": ("what is going on", _nothing, "  dpipectl status\n  dpipectl --json status"),
    "logs": (
        "the log of a run",
        _logs,
        "  dpipectl logs -n 200\n  dpipectl logs -f\n  dpipectl logs last --all --raw > run.log",
    ),
    "runs": ("the history", _runs, "  dpipectl runs -n 5"),
    "show": ("all that is known of one run", _show, "  dpipectl show last"),
    "wait": ("wait until a run has ended", _wait, "  dpipectl wait && echo completed"),
    "resume": (
        "go on from a run's newest checkpoint, as a new run",
        _resume,
        "  dpipectl resume\n"
        "  dpipectl resume 20260131 --config longer.toml --follow\n"
        "  dpipectl resume last --config longer.toml --check\n"
        "  dpipectl resume last -- --reset_optimizer\n"
        "GPUs, --env and lasting arguments are those of the run; what follows -- goes to train.py as well",
    ),
    "example": (
        "write an example data set, and the config to train the embedded trainer on it; needs no daemon",
        _example,
        "  dpipectl example /workspace/example\n"
        "  dpipectl start --config /workspace/example/training.toml --follow\n"
        "  dpipectl example /workspace/stars --only star --base /workspace/example/output/20260131_12-00-00",
    ),
    "reload": ("re-execute the daemon in place; the training goes on", _nothing, "  dpipectl reload"),
}
