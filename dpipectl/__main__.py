"""Entry point of `dpipectl`.

Why here: what ends a short-lived client well, a closed pipe, Ctrl-C, an error of the daemon, is decided
in one place. The collector is off and the interpreter is left without tearing modules down: both would
only take time from `dpipectl status`.

Known gap: none.
"""

import gc

gc.disable()

import contextlib  # noqa: E402 - the collector has to be off before the imports
import os  # noqa: E402
import sys  # noqa: E402

# msgspec would import typing_extensions where it is installed, a tenth of what `status` may take; it
# does without where it is not, and needs nothing of it on Python 3.11.
_held_back = "typing_extensions" not in sys.modules
if _held_back:
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
import msgspec  # noqa: E402, F401

if _held_back:
    del sys.modules["typing_extensions"]

from dpipectl import cli  # noqa: E402


def main() -> None:
    """Does not return: ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a progress bar's blocks shows question marks instead of an error.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = cli.EXIT_CLOSED
    try:
        try:
            code = _run()
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else cli.EXIT_USAGE
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        # The reader (head, less) has seen enough. How it ended is told all the same, if it is known.
        pass
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.flush()
    os._exit(code)


def _interrupted() -> int:
    """With `--json` there is a document also then, unless one was written already."""
    # A reader that takes nothing is left with the second Ctrl-C.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        if cli.Parser.as_json:
            if not cli.Parser.answered:
                hint = "what the daemon was asked for, it may still do"
                cli.document(cli.error_document("interrupted", "interrupted (Ctrl-C)", hint=hint))
            sys.stdout.flush()
    return cli.EXIT_INTERRUPTED


def _run() -> int:
    options = cli.parse(sys.argv[1:])
    from dpipectl import verbs
    from dpipectl.client import Client, Failed
    from dpiped.errors import DpipedError
    from dpiped.settings import socket_path

    try:
        code: int = getattr(verbs, options.verb)(Client(socket_path()), options)
        return code
    except (DpipedError, Failed) as error:
        said = error.error if isinstance(error, Failed) else error
        status = cli.EXIT_CODES.get(said.code, cli.EXIT_NOT_COMPLETED)
        cli.fail(said.code, said.message, status, as_json=options.json, field=said.field, hint=said.hint)


if __name__ == "__main__":
    main()
