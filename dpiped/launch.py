"""From a request to a run that can be spawned: which train.py, which launcher, which arguments.

Why: everything that can be refused is refused here, before a directory is made or a process started:
a missing launcher, a config outside the allowed roots, a resume without a checkpoint. What passes is
one immutable `Plan`.

The master port goes to both the launcher and train.py, because train.py overrides the environment's
with its own default and two trainings on one machine would then fight over it.

Known gap: the port is free when it is chosen, some seconds before the training listens on it.
"""

import calendar
import errno
import os
import random
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

import dpiped
from dpiped import (
    arguments,
    beneath,
    checkpoints,
    configs,
    forms,
    late,
    paths,
    readying,
    redaction,
    rundir,
    sources,
    wholeness,
)
from dpiped.configs import Config
from dpiped.errors import InvalidInput, NotInstalled
from dpiped.rundir import TRAINING_TOML, Spec
from dpiped.settings import (
    ACCELERATOR,
    RUN_MARKER,
    VISIBLE_DEVICES,
    Settings,
    launcher_candidates,
    training_environment,
)
from dpiped.sources import WANDB_KEY, Wanted

PORTS = range(20000, 32000)
"""Below Linux's ephemeral range, so that no outgoing connection takes the port meanwhile."""
_ID = re.compile(r"\d{8}-\d{6}-\d{3}[0-9a-f]{4}", re.ASCII)
_SECONDS = "%Y%m%d-%H%M%S"


OF_A_FORM = {"dataset.directory[0].path": "dataset_path", "optimizer.betas": "betas"}


class Plan(Struct, frozen=True):
    """A run, ready to be written and spawned. `environment` is complete and never written down.

    `publish` and `warnings` are those of `sources.Setup`; `resume` is where it goes on from.
    """

    spec: Spec
    files: dict[str, bytes]
    environment: dict[str, str]
    run_dir: Path
    publish: dict[Path, bytes] = {}
    warnings: tuple[str, ...] = ()
    resume: "Resume | None" = None

    def __repr__(self) -> str:
        """Without the files: a key may stand in one."""
        return f"Plan({self.spec.run})"


class Resume(Struct, frozen=True):
    """The folder and the whole checkpoint in it. `repoint`: `latest` names another one, so far."""

    train_dir: Path
    tag: str
    repoint: bool = False
    warnings: tuple[str, ...] = ()


def make(settings: Settings, wanted: Wanted) -> Plan:
    """Checks everything. Raises InvalidInput or NotInstalled; nothing is written."""
    _refuse_nul(wanted)
    setup = sources.find(settings, wanted)
    roots, source = setup.roots, setup.source
    train_py = _find_train_py(settings, source.model_type)
    launcher = _find_launcher(settings)
    config = configs.check(source, roots, train_py.parent)
    num_gpus = wanted.gpus(settings)
    _check_stages(config, num_gpus)
    asked = arguments.read(wanted.args)
    doubts = _late(config, asked.words, train_py.parent, wanted)
    for path in asked.paths:
        paths.confine(str(path), arguments.FIELD, roots, train_py.parent)
    in_form = wanted.form.resume_from_checkpoint if wanted.form else False
    stages = None if arguments.RESET_OPTIMIZER in asked.words else config.data.get("pipeline_stages", 1)
    resume = _resume_from(config, wanted.resume or asked.resume or in_form or config.resume, roots, stages)
    port = asked.master_port or _free_port()
    run = new_id(settings.state_dir / "runs", time.time())
    run_dir = settings.state_dir / "runs" / run
    environment = _environment(settings, wanted, launcher, run)
    argv = [str(launcher), _devices(environment, num_gpus), f"--master_port={port}"]
    argv += [train_py.name, "--deepspeed", "--config", str(run_dir / TRAINING_TOML)]
    argv += [arguments.PORT, str(port), *([arguments.RESUME, resume.train_dir.name] if resume else [])]
    spec = Spec(
        run=run,
        created=time.time(),
        argv=(*argv, *asked.words),
        num_gpus=num_gpus,
        args=asked.words,
        cwd=str(train_py.parent),
        env={name: redaction.shown(name, value) for name, value in wanted.env.items()},
        source=str(source.path),
        digest=config.digest,
        form=forms.hidden(wanted.form) if wanted.form else None,
        holds_key=config.wandb,
        output_dir=str(config.output_dir),
        epochs=config.epochs,
        max_steps=config.max_steps,
        completes=asked.completes,
        service=wanted.service,
        resumed_from=wanted.origin.run if wanted.origin else None,
        train_dir=str(resume.train_dir) if resume else None,
        checkpoint=resume.tag if resume else None,
        master_port=port,
    )
    if same := _same_config(settings, source.path, wanted.origin):
        spec = replace(spec, source=same.source, digest=same.digest, form=same.form)
    files = configs.snapshot(config, run, run_dir, _key(config, source.key, environment))
    warnings = (*setup.warnings, *doubts, *(resume.warnings if resume else ()))
    return Plan(spec, files, environment, run_dir, setup.publish, warnings, resume)


def publish(plan: Plan) -> None:
    """Writes what lies outside of the run's directory, which goes with the error if that fails.

    A form's files where it asked for them, without a key; then `latest`, if it names another checkpoint
    than the one to go on from. Raises InvalidInput.
    """
    try:
        _publish(plan)
        if plan.resume is not None and plan.resume.repoint:
            readying.name_in_latest(plan.resume.train_dir, plan.resume.tag)
    except InvalidInput:
        rundir.discard(plan.run_dir)
        raise


def _publish(plan: Plan) -> None:
    try:
        for path in plan.publish:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for path, data in plan.publish.items():
            beneath.replace(path, data, 0o644)
    except OSError as error:
        raise InvalidInput(
            f"config_dir: the config files can't be written there: {error.strerror}", field="config_dir"
        ) from error


def _key(config: Config, key: str | None, environment: dict[str, str]) -> str | None:
    """The key to launch with, where one is needed: the config's own, or the environment's."""
    if not config.wandb:
        return None
    key = key or environment.get(WANDB_KEY)
    if not key or key == redaction.HIDDEN or not redaction.KEY.fullmatch(key):
        raise InvalidInput(
            f"{redaction.FIELD}: the key is not written down anywhere, so it has to be given",
            field=redaction.FIELD,
            hint=f"set {WANDB_KEY} for the daemon, or for this run: --env {WANDB_KEY}=...; it "
            f"{redaction.KEY_TAKES.removeprefix('takes ')}",
        )
    return key


def _refuse_nul(wanted: Wanted) -> None:
    """No process can be given one."""
    for field, texts in (("args", wanted.args), ("env", tuple(wanted.env.values()))):
        if any("\0" in text for text in texts):
            raise InvalidInput(f"{field} takes text without NUL", field=field)


def new_id(runs: Path, now: float) -> str:
    """UTC time to the millisecond, so that names sort by time, and some digits against chance.

    It sorts behind every run there is: after a clock was set back, "the last run" would be another one.
    """
    newest = next(filter(None, map(_made_at, rundir.names(runs))), 0)
    return _stamp(max(int(now * 1000), newest + 1)) + secrets.token_hex(2)


def _made_at(run: str) -> int | None:
    """The milliseconds in a name that `new_id` gave."""
    if not _ID.fullmatch(run):
        return None
    try:
        return calendar.timegm(time.strptime(run[:15], _SECONDS)) * 1000 + int(run[16:19])
    except ValueError:
        return None


def _stamp(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{time.strftime(_SECONDS, time.gmtime(seconds))}-{rest:03}"


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
        "train.py was not found",
        field="DIFFPIPE_APP_DIR",
        hint=f"looked in {' and '.join(map(str, settings.app_dirs))}; install diffusion-pipe there, "
        f"or use model.type = {configs.EMBEDDED_TYPE!r}",
    )


def _find_launcher(settings: Settings) -> Path:
    candidates = launcher_candidates(settings)
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return Path(found).absolute()
    raise NotInstalled(
        "the deepspeed launcher was not found",
        field="DEEPSPEED_BIN",
        hint=f"looked for {', '.join(candidates)}; install deepspeed, or set DEEPSPEED_BIN to an executable",
    )


def _late(config: Config, words: tuple[str, ...], base: Path, wanted: Wanted) -> tuple[str, ...]:
    """`late.check`; of a form, the field is the form's."""
    form = wanted.form or (wanted.origin.form if wanted.origin else None)
    try:
        return late.check(config, words, base, of_a_form=form is not None)
    except InvalidInput as error:
        if wanted.form is not None and error.field is not None:
            error.field = OF_A_FORM.get(error.field, error.field)
        raise


def _check_stages(config: Config, num_gpus: int) -> None:
    stages = config.data.get("pipeline_stages", 1)
    if num_gpus % stages:
        raise InvalidInput(
            f"pipeline_stages = {stages} does not divide the number of GPUs ({num_gpus})",
            field="pipeline_stages",
        )


def _resume_from(
    config: Config, resume: Path | bool | str, roots: tuple[Path, ...], stages: int | None
) -> Resume | None:
    """The folder to resume from, whole checkpoint and all; None for a fresh start.

    `stages` is None where the optimizer's state, which is written by stage, is not loaded.
    """
    field = "resume_from_checkpoint"
    if resume is False:
        return None
    passed: tuple[Path, ...] = ()
    if resume is True:
        newest, passed = checkpoints.newest_resumable(config.output_dir, stages or 1)
        if newest is None:
            spoilt = f"; none is whole in {passed[0].name}" if passed else ""
            raise InvalidInput(
                f"{field}: no folder in output_dir holds a whole checkpoint{spoilt}",
                field=field,
                hint=f"output_dir is {config.output_dir}",
            )
        folder = paths.confine(str(newest), field, roots)
    else:
        folder = paths.confine(str(resume), field, roots, config.output_dir)
    if folder.parent != config.output_dir:
        text = f"{field}: {str(resume)!a:.300} is no folder in output_dir"
        raise InvalidInput(text, field=field, hint=f"output_dir is {config.output_dir}")
    found = checkpoints.require_checkpoint(folder, field, stages or 1)
    assert found.tag is not None
    _check_written_by(folder / found.tag, stages)
    warnings = [f"{each.name} is newer, but holds no whole checkpoint" for each in passed]
    warnings += [f"{found.why}; going on from {found.tag}"] if found.why else []
    return Resume(folder, found.tag, found.why is not None, tuple(warnings))


def _check_written_by(checkpoint: Path, stages: int | None) -> None:
    """DeepSpeed would load the first stage's optimizer state into every stage."""
    written = wholeness.stages_of(checkpoint)
    if stages is not None and written != stages:
        raise InvalidInput(
            f"pipeline_stages = {stages}, and {checkpoint.name} was written by {written} stages",
            field="pipeline_stages",
            hint=f"`-- {arguments.RESET_OPTIMIZER}` goes on with the weights alone",
        )


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise InvalidInput(f"no free master port from {PORTS.start} to {PORTS.stop}", field="args")


def _devices(environment: dict[str, str], num_gpus: int) -> str:
    """The launcher's word for which GPUs. With --num_gpus it would ignore CUDA_VISIBLE_DEVICES."""
    visible = list(dict.fromkeys(entry.strip() for entry in environment.get(VISIBLE_DEVICES, "").split(",")))
    # Empty or -1 hides them all, which a trainer on CPUs may want.
    if visible in ([""], ["-1"]) or environment.get(ACCELERATOR, "cuda") != "cuda":
        return f"--num_gpus={num_gpus}"
    if not all(entry.isdecimal() for entry in visible):
        raise InvalidInput(
            f"{VISIBLE_DEVICES} takes GPU numbers (deepspeed knows nothing else), not {','.join(visible)!r}",
            field=VISIBLE_DEVICES,
            hint=f"--env {VISIBLE_DEVICES}= takes the first GPUs of the machine instead",
        )
    if len(visible) < num_gpus:
        raise InvalidInput(
            f"{VISIBLE_DEVICES} shows {len(visible)} GPUs, and the training is to have {num_gpus}",
            field=VISIBLE_DEVICES,
        )
    return f"--include=localhost:{','.join(visible[:num_gpus])}"


def _environment(settings: Settings, wanted: Wanted, launcher: Path, run: str) -> dict[str, str]:
    env = training_environment(settings) | wanted.env
    env["PATH"] = f"{launcher.parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env[RUN_MARKER] = run
    return env
