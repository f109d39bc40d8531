"""Entry point: `dpiped` (the daemon), and the programs beside it.

    dpiped                        the daemon, in the foreground
    dpiped finish                 ends a run that a daemon has left behind (started by systemd)
    dpiped runner RUN_DIR         parent and reaper of one training (started by the daemon)
    dpiped bound PID FILES COMMAND...   a command that dies with process PID (started by the daemon)

Why one entry point: the daemon must be able to start its helpers with nothing but its own Python.

Known gap: none.
"""

import argparse
import os
import sys
from pathlib import Path

import dpiped
from dpiped import signals
from dpiped.errors import DpipedError, SettingsError

HELP = """\
Runs in the foreground; supervisord or systemd keeps it alive. It takes no options: everything is set
by environment variables (DIFFPIPE_SOCKET, DIFFPIPE_STATE_DIR, WORKSPACE_ROOT, DIFFPIPE_CONFIG, ...;
the README lists them all). Talk to it with dpipectl.

`dpiped finish` is for service managers, after the daemon's end: it stops a run that a daemon which had to
be killed has left behind, as the daemon would have; with none it does nothing.

signals: SIGTERM and SIGINT stop the run and end the daemon (DIFFPIPE_ON_EXIT=detach leaves the run
going for the next daemon); SIGHUP re-executes it in place.

exit code: 0 after a signal, 78 for a setting that has to be changed first, 1 for everything else.
"""

EXIT_FAILED = 1
EXIT_SETTINGS = 78
"""EX_CONFIG of sysexits.h: a restart would fail in the same way."""


def main() -> int:
    """Returns the process's exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["runner"]:
        return _runner(Path(arguments[1]), arguments[2:])
    if arguments[:1] == ["bound"]:
        return _bound(int(arguments[1]), int(arguments[2]), arguments[3:])
    parser = argparse.ArgumentParser(
        prog="dpiped",
        description="The daemon that owns one DeepSpeed diffusion training, its log and its TensorBoard.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dpiped {dpiped.__version__}")
    parser.add_argument("finish", nargs="?", choices=["finish"], help="end a run that was left behind")
    return _daemon(parser.parse_args().finish is not None)


def _daemon(only_finish: bool) -> int:
    if not only_finish:
        signals.hold()
    from dpiped import daemon, finish, settings

    main = finish.main if only_finish else daemon.main
    try:
        return main(settings.load(), settings.load_service_manager())
    except DpipedError as error:
        print(f"dpiped: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return EXIT_SETTINGS if isinstance(error, SettingsError) else EXIT_FAILED


def _runner(run_dir: Path, options: list[str]) -> int:
    from dpiped import limits, runner

    signals.release()
    if "--files" in options:
        limits.set_files(int(options[options.index("--files") + 1]))
    return runner.main(run_dir, adopt="--adopt" in options)


def _bound(parent: int, files: int, command: list[str]) -> int:
    """Becomes `command`. Returns only if the parent is gone already."""
    from dpiped import limits, procs

    signals.release()
    limits.set_files(files)
    procs.die_with_parent()
    # The parent may have died before the kernel was told; then nobody will signal us any more.
    if os.getppid() == parent:
        os.execv(command[0], command)
    return 1


if __name__ == "__main__":
    sys.exit(main())
