"""From a request to a run that can be spawned: which train.py, which launcher, which arguments.

Why: everything that can be refused is refused here, before a directory is made or a process started:
a missing launcher, a config outside the allowed roots, a resume without a checkpoint. What passes is
one immutable `Plan`.

The master port goes to both the launcher and train.py, because train.py overrides the environment's
with its own default and two trainings on one machine would then fight over it.

Known gap: the port is free when it is chosen, some seconds before the training listens on it.
"""

import os
import random
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from msgspec import Struct

import dpiped
from dpiped import checkpoints, configs, paths
from dpiped.configs import Config
from dpiped.errors import InvalidInput, NotInstalled
from dpiped.rundir import TRAINING_TOML, Spec
from dpiped.settings import RUN_MARKER, Settings, launcher_candidates, training_environment

PORTS = range(20000, 32000)
"""Below Linux's ephemeral range, so that no outgoing connection takes the port meanwhile."""
WITHOUT_COMPLETION = frozenset(("--cache_only", "--dump_dataset", "--test_sample"))
"""Flags with which train.py ends well without printing its completion line."""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_RESUME = "--resume_from_checkpoint"


class Wanted(Struct, frozen=True):
    """What was asked for. `resume` is a folder, True for the newest complete one, or None.

    `origin` is the run that is resumed; without a config of its own the new run counts as the same one.
    """

    config: Path
    num_gpus: int | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    resume: Path | bool | None = None
    origin: Spec | None = None
    service: bool = False


class Plan(Struct, frozen=True):
    """A run, ready to be written and spawned. `environment` is complete and never written down."""

    spec: Spec
    files: dict[str, bytes]
    environment: dict[str, str]
    run_dir: Path


def make(settings: Settings, wanted: Wanted) -> Plan:
    """Checks everything. Raises InvalidInput or NotInstalled; nothing is written."""
    roots = settings.allowed_roots
    if wanted.origin is not None:
        # A run's own snapshot may be resumed wherever the state directory is.
        roots = (*roots, settings.state_dir / "runs" / wanted.origin.run)
    source = paths.confine(str(wanted.config), "config", roots)
    train_py = _find_train_py(settings, configs.model_type(source))
    launcher = _find_launcher(settings)
    config = configs.load(source, roots, train_py.parent)
    num_gpus = wanted.num_gpus or settings.num_gpus
    _check_stages(config, num_gpus)
    args, resume = _split_resume(wanted.args)
    train_dir = _resume_from(config, wanted.resume or resume or config.resume, settings)
    port, args = _master_port(args)
    run = _new_id()
    run_dir = settings.state_dir / "runs" / run
    argv = [str(launcher), f"--num_gpus={num_gpus}", f"--master_port={port}", train_py.name, "--deepspeed"]
    argv += ["--config", str(run_dir / TRAINING_TOML), "--master_port", str(port)]
    argv += [_RESUME, train_dir.name] if train_dir else []
    same = _same_config(settings, source, wanted.origin)
    spec = Spec(
        run=run,
        created=time.time(),
        argv=(*argv, *args),
        cwd=str(train_py.parent),
        env={name: "(hidden)" if _SECRET.search(name) else value for name, value in wanted.env.items()},
        source=same.source if same else str(source),
        digest=same.digest if same else config.digest,
        output_dir=str(config.output_dir),
        epochs=config.epochs,
        max_steps=config.max_steps,
        completes=not WITHOUT_COMPLETION.intersection(word.partition("=")[0] for word in args),
        service=wanted.service,
        resumed_from=wanted.origin.run if wanted.origin else None,
        train_dir=str(train_dir) if train_dir else None,
        master_port=port,
    )
    return Plan(
        spec, configs.snapshot(config, run, run_dir), _environment(settings, wanted, launcher, run), run_dir
    )


def _new_id() -> str:
    """UTC time to the millisecond, so that names sort by time, and two digits against a clock set back."""
    now = time.time()
    return (
        f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now % 1 * 1000):03}{secrets.token_hex(1)}"
    )


def _same_config(settings: Settings, source: Path, origin: Spec | None) -> Spec | None:
    """The run that is resumed with its own snapshot: then the new run is of the same config."""
    own = settings.state_dir.resolve() / "runs" / (origin.run if origin else "")
    return origin if source.parent == own else None


def _find_train_py(settings: Settings, model_type: str) -> Path:
    if model_type == configs.EMBEDDED_TYPE:
        return Path(dpiped.__file__).parent / "trainer" / "train.py"
    for folder in settings.app_dirs:
        if os.access(folder / "train.py", os.R_OK):
            return folder.resolve() / "train.py"
    raise NotInstalled(
        f"train.py was not found in {' nor in '.join(map(str, settings.app_dirs))}",
        field="DIFFPIPE_APP_DIR",
        hint=f"install diffusion-pipe there, or use model.type = {configs.EMBEDDED_TYPE!r}",
    )


def _find_launcher(settings: Settings) -> Path:
    candidates = launcher_candidates(settings)
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return Path(found).absolute()
    raise NotInstalled(
        f"the deepspeed launcher was not found (looked for {', '.join(candidates)})",
        field="DEEPSPEED_BIN",
        hint="install deepspeed, or set DEEPSPEED_BIN to an executable",
    )


def _check_stages(config: Config, num_gpus: int) -> None:
    stages = config.data.get("pipeline_stages", 1)
    if num_gpus % stages:
        raise InvalidInput(
            f"pipeline_stages = {stages} does not divide the number of GPUs ({num_gpus})",
            field="pipeline_stages",
        )


def _split_resume(args: tuple[str, ...]) -> tuple[tuple[str, ...], bool | str | None]:
    """Takes the resume flag out of the extra arguments: it is always given with an explicit folder."""
    rest: list[str] = []
    resume: bool | str | None = None
    queue = list(args)
    while queue:
        word = queue.pop(0)
        if word == _RESUME:
            resume = queue.pop(0) if queue and not queue[0].startswith("-") else True
        elif word.startswith(_RESUME + "="):
            resume = word.partition("=")[2]
            if not resume:
                raise InvalidInput(f"{_RESUME}= takes a folder's name", field=_RESUME.lstrip("-"))
        else:
            rest.append(word)
    return tuple(rest), resume


def _resume_from(config: Config, resume: Path | bool | str, settings: Settings) -> Path | None:
    """The folder to resume from, whole checkpoint and all; None for a fresh start."""
    field = "resume_from_checkpoint"
    if resume is False:
        return None
    if resume is True:
        newest = checkpoints.newest_resumable(config.output_dir)
        if newest is None:
            raise InvalidInput(
                f"{field}: no folder in {config.output_dir} holds a whole checkpoint", field=field
            )
        return paths.confine(str(newest), field, settings.allowed_roots)
    folder = paths.confine(str(resume), field, settings.allowed_roots, config.output_dir)
    if folder.parent != config.output_dir:
        raise InvalidInput(f"{field}: {folder} does not lie in output_dir ({config.output_dir})", field=field)
    checkpoints.require_checkpoint(folder, field)
    return folder


def _master_port(args: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """The user's own port if one is among the arguments, else a free one."""
    words = [
        part
        for word in args
        for part in (word.split("=", 1) if word.startswith("--master_port=") else [word])
    ]
    if "--master_port" not in words:
        return _free_port(), args
    at = words.index("--master_port")
    value = words[at + 1] if at + 1 < len(words) else ""
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise InvalidInput(f"--master_port takes a port number, not {value!r}", field="args")
    return int(value), tuple(words[:at] + words[at + 2 :])


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise InvalidInput(f"no free master port from {PORTS.start} to {PORTS.stop}", field="args")


def _environment(settings: Settings, wanted: Wanted, launcher: Path, run: str) -> dict[str, str]:
    env = training_environment(settings) | wanted.env
    env["PATH"] = f"{launcher.parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env[RUN_MARKER] = run
    return env
