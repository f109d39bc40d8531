"""What the daemon has to understand of the arguments that a user gives to train.py.

Why: argparse takes the last of two equal flags, and any unambiguous beginning of one. So a second
`--config`, or a `--resume` without its rest, would quietly train something else than what was checked
and recorded. Here flags are spelled out first; then those that the daemon itself decides are taken out,
and the rest is passed on as it is.

Source of the flags: diffusion-pipe's train.py, and what deepspeed adds to its parser.

Known gap: a flag that a later diffusion-pipe adds is passed on without being understood.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from dpiped.errors import InvalidInput

FIELD = "args"
RESUME = "--resume_from_checkpoint"
PORT = "--master_port"
RESET_DATALOADER = "--reset_dataloader"
RESET_OPTIMIZER = "--reset_optimizer"
OURS = frozenset(("--config", "--local_rank"))
"""Given by the daemon or the launcher; a second one would win."""
TRUST_CACHE = "--trust_cache"
KNOWING = "--i_know_what_i_am_doing"
LASTING = frozenset((TRUST_CACHE, KNOWING))
"""What holds for a run that goes on as well; the others are meant once."""
TAKES_A_PATH = frozenset(("--dump_dataset", "--deepspeed_config", "--deepscale_config"))
WITHOUT_COMPLETION = frozenset(("--cache_only", "--dump_dataset", "--test_sample"))
"""Flags with which train.py ends well without printing its completion line."""
_FLAGS = frozenset(
    "--reset_dataloader --reset_optimizer --reset_optimizer_params --regenerate_cache "
    "--deepspeed --deepscale".split()
).union(OURS, LASTING, TAKES_A_PATH, WITHOUT_COMPLETION, (RESUME, PORT))


class Arguments(Struct, frozen=True):
    """`words` are passed on. `resume` is True for the newest, a folder's name, or None if not asked for.

    `paths` are those of files and folders among the words; `completes` is False where train.py will not
    print its completion line.
    """

    words: tuple[str, ...]
    resume: bool | str | None = None
    master_port: int | None = None
    paths: tuple[Path, ...] = ()
    completes: bool = True


def read(args: tuple[str, ...]) -> Arguments:
    """Raises InvalidInput for what only the daemon may say, and for flags without their value."""
    words: list[str] = []
    resume: bool | str | None = None
    port: int | None = None
    paths: list[Path] = []
    queue = [part for word in args for part in _spelled_out(word)]
    while queue:
        word = queue.pop(0)
        if word in OURS:
            raise InvalidInput(f"{word} can't be given to train.py: dpiped sets it", field=FIELD)
        if word == RESUME:
            resume = queue.pop(0) if queue and not queue[0].startswith("-") else True
            if resume == "":
                # A variable that is not set; not to resume would be to begin anew.
                raise InvalidInput(f"{RESUME} takes a folder's name, or nothing at all", field=FIELD)
        elif word == PORT:
            port = _port(queue.pop(0) if queue else "")
        else:
            words.append(word)
            if word in TAKES_A_PATH:
                paths.append(_path(word, queue))
    completes = not WITHOUT_COMPLETION.intersection(words)
    return Arguments(tuple(words), resume, port, tuple(paths), completes)


def lasting(words: tuple[str, ...]) -> tuple[str, ...]:
    """What of a run's arguments a run that goes on from it gets as well."""
    kept: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word in TAKES_A_PATH:
            del queue[:1]
        elif word in LASTING or word not in _FLAGS:
            kept.append(word)
    return tuple(kept)


def _spelled_out(word: str) -> Iterator[str]:
    """A known flag in full and its value apart; any other word as it is."""
    name, equals, value = word.partition("=")
    fitting = [name] if name in _FLAGS else [flag for flag in _FLAGS if flag.startswith(name)]
    if len(name) < 3 or not name.startswith("--") or len(fitting) != 1:
        yield word
        return
    yield fitting[0]
    if equals:
        if not value:
            raise InvalidInput(f"{name}= takes a value", field=FIELD)
        yield value


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        raise InvalidInput(f"{PORT} takes a port number, not {text!r:.100}", field=FIELD)
    return int(text)


def _path(flag: str, queue: list[str]) -> Path:
    if not queue or queue[0].startswith("-"):
        raise InvalidInput(f"{flag} takes a path", field=FIELD)
    return Path(queue[0])
