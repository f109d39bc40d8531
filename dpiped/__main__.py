"""Entry point: `dpiped` (the daemon), and the two programs it runs itself.

    dpiped                        the daemon, in the foreground
    dpiped runner RUN_DIR         parent and reaper of one training (started by the daemon)
    dpiped bound PID COMMAND...   a command that dies with process PID (started by the daemon)

Why one entry point: the daemon must be able to start its helpers with nothing but its own Python.

Known gap: none.
"""

import argparse
import os
import sys
from pathlib import Path

import dpiped
from dpiped import signals
from dpiped.errors import DpipedError

HELP = """\
Runs in the foreground; supervisord or systemd keeps it alive. It takes no options: everything is set
by environment variables (DIFFPIPE_SOCKET, DIFFPIPE_STATE_DIR, WORKSPACE_ROOT, DIFFPIPE_CONFIG, ...;
the README lists them all). Talk to it with dpipectl.

signals: SIGTERM and SIGINT stop the run and end the daemon (DIFFPIPE_ON_EXIT=detach leaves the run
going for the next daemon); SIGHUP re-executes it in place.
"""


def main() -> int:
    """Returns the process's exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["runner"]:
        from dpiped import runner

        signals.release()
        return runner.main(Path(arguments[1]), adopt="--adopt" in arguments[2:])
    if arguments[:1] == ["bound"]:
        return _bound(int(arguments[1]), arguments[2:])
    parser = argparse.ArgumentParser(
        prog="dpiped",
        description="The daemon that owns one DeepSpeed diffusion training, its log and its TensorBoard.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dpiped {dpiped.__version__}")
    parser.parse_args()
    return _daemon()


def _daemon() -> int:
    signals.hold()
    from dpiped import daemon, settings

    try:
        return daemon.main(settings.load())
    except DpipedError as error:
        print(f"dpiped: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return 1


def _bound(parent: int, command: list[str]) -> int:
    """Becomes `command`. Returns only if the parent is gone already."""
    from dpiped import procs

    signals.release()
    procs.die_with_parent()
    # The parent may have died before the kernel was told; then nobody will signal us any more.
    if os.getppid() == parent:
        os.execv(command[0], command)
    return 1


if __name__ == "__main__":
    sys.exit(main())
