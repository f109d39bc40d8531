"""A trainer that does nothing but behave: the prints, files and signals of diffusion-pipe, or their abuse.

`[script] behaviour` and its other keys say what to do; so does the variable SCRIPT, as JSON, where the config
is made from a form. It needs only the standard library. One behaviour is one function below.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    print(text, flush=True)


def say_as_deepspeed(text: str) -> None:
    say(f"[2026-01-01 00:00:00,000] [INFO] [logging.py:123:log_dist] [Rank 0] {text}")


def write_weights(path: Path) -> None:
    """A file as torch writes it: a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights")


def script_of(config: dict[str, Any]) -> dict[str, Any]:
    script: dict[str, Any] = config.get("script") or json.loads(os.environ.get("SCRIPT", "{}"))
    return script


class Training:
    """The well-behaved part: run directory, step lines, checkpoints, signal files."""

    def __init__(self, options: argparse.Namespace, config: dict[str, Any]) -> None:
        self.options = options
        self.config = config
        self.script = script_of(config)
        self.steps: int = self.script.get("steps", 1_000_000 if "until" in self.script else 20)
        self.seconds: float = self.script.get("seconds_per_step", 0.02)
        self.step = 0
        self.run_dir: Path | None = None

    def prepare(self) -> None:
        monitoring = self.config.get("monitoring", {})
        if monitoring.get("enable_wandb"):
            # As wandb.login does: it takes a key of forty hexadecimal digits.
            key = monitoring["wandb_api_key"]
            say(f"wandb login: {'ok' if len(key) == 40 and int(key, 16) else 'refused'}")
        while (hold := self.script.get("hold")) and not Path(hold).exists():
            time.sleep(0.02)
        say("using video_clip_mode=single_beginning")
        say("caching latents: /data/set")
        time.sleep(self.script.get("caching_seconds", 0.0))
        output = Path(self.config["output_dir"])
        if self.options.resume_from_checkpoint:
            self.run_dir = output / self.options.resume_from_checkpoint
            self.step = int((self.run_dir / "latest").read_text().removeprefix("global_step"))
        else:
            self.run_dir = output / datetime.now(UTC).strftime("%Y%m%d_%H-%M-%S")
            self.run_dir.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.options.config, self.run_dir)
            shutil.copy(self.config["dataset"], self.run_dir)
            (self.run_dir / "events.out.tfevents.1.host.1.0").write_bytes(b"")
        if self.script.get("copies"):
            (self.run_dir / "epoch1").mkdir(exist_ok=True)
            shutil.copy(self.options.config, self.run_dir / "epoch1")
        say("Global batch size = 2")
        if self.step:
            say(f"Resuming training from checkpoint. Resuming at epoch: 1, step: {self.step + 1}")

    def one_step(self) -> None:
        self.step += 1
        time.sleep(self.seconds)
        loss = 1 / self.step
        if self.step <= self.script.get("quiet_after", self.steps):
            loss = self.script.get("loss", loss)
            say(f"steps: {self.step} loss: {loss:.4f} iter time (s): {self.seconds:.3f} samples/sec: 13.824")
        assert self.run_dir is not None
        for name in ("save", "save_quit"):
            if (self.run_dir / name).is_file():
                (self.run_dir / name).unlink()
                self.checkpoint()
                if name == "save_quit":
                    say("Manually quitting")
                    sys.exit(0)

    def checkpoint(self) -> None:
        assert self.run_dir is not None
        tag = f"global_step{self.step}"
        say_as_deepspeed(f"[Torch] Checkpoint {tag} is about to be saved!")
        folder = self.run_dir / tag
        folder.mkdir(exist_ok=True)
        write_weights(folder / "layer_00-model_states.pt")
        for stage in range(self.config.get("pipeline_stages", 1)):
            write_weights(folder / f"mp_rank_{stage:02}_model_states.pt")
        say_as_deepspeed(f"Saving model checkpoint: {folder}/mp_rank_00_model_states.pt")
        (self.run_dir / "latest").write_text(tag)

    def train(self) -> None:
        """For `steps` steps, or until the file `until` appears."""
        until = self.script.get("until")
        while self.step < self.steps and not (until and Path(until).exists()):
            self.one_step()
        self.checkpoint()
        say("TRAINING COMPLETE!")


def well_behaved(training: Training) -> None:
    training.prepare()
    training.train()


def stubborn(training: Training) -> None:
    """Ignores SIGTERM, forks, and its child leaves session and group, forks again and ignores it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        time.sleep(600)
        os._exit(0)
    training.prepare()
    say("stubborn")
    training.steps = 1_000_000
    training.train()


def nameless(training: Training) -> None:
    """Like a daemon that sheds its environment: only its ancestry betrays it."""
    subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
    well_behaved(training)


def raises(training: Training) -> None:
    training.prepare()
    training.one_step()
    while (until := training.script.get("until")) and not Path(until).exists():
        time.sleep(0.02)
    raise RuntimeError(training.script.get("error", "CUDA error: an illegal memory access was encountered"))


def exits(training: Training) -> None:
    """With the given `code`, after the `error` as an exception would be shown, if there is one."""
    training.prepare()
    training.one_step()
    if error := training.script["error"]:
        print(f'Traceback (most recent call last):\n  File "train.py", line 1\n{error}', file=sys.stderr)
    sys.exit(training.script["code"])


def lingers(training: Training) -> None:
    """It completes and does not end."""
    well_behaved(training)
    time.sleep(600)


def ends_badly(training: Training) -> None:
    """It completes, and crashes while it cleans up."""
    well_behaved(training)
    sys.exit(3)


def killed(training: Training) -> None:
    training.prepare()
    training.one_step()
    os.kill(os.getpid(), signal.SIGKILL)


def caching_hang(training: Training) -> None:
    del training
    say("using video_clip_mode=single_beginning")
    print("Process Process-2:\nTraceback (most recent call last):", file=sys.stderr)
    print(
        '  File "dataset.py", line 673, in _get\nAssertionError: Directory /data had no images/videos!',
        file=sys.stderr,
    )
    time.sleep(600)


def chatty(training: Training) -> None:
    training.prepare()
    for number in range(training.script.get("lines", 100_000)):
        sys.stdout.write(f"line {number} of a chatty trainer\n")
    training.train()


def curve(training: Training) -> None:
    """`points` steps of a loss that falls and jitters, in `parts` epochs, as fast as they can be printed."""
    training.prepare()
    points, parts = training.script.get("points", 1000), training.script.get("parts", 5)
    for step in range(1, points + 1):
        if step > 1 and (step - 1) % (points // parts) == 0:
            sys.stdout.write(f"Started new epoch: {1 + (step - 1) // (points // parts)}\n")
        loss = 0.05 + step**-0.5 + 0.02 * ((step * 7919) % 101 - 50) / 50
        sys.stdout.write(f"steps: {step} loss: {loss:.4f} iter time (s): 0.020 samples/sec: 13.824\n")
    training.step = points
    training.train()


def says(training: Training) -> None:
    """The given `texts`, line by line, and then one step."""
    training.prepare()
    for text in training.script["texts"]:
        say(text)
    training.train()


def paced(training: Training) -> None:
    """`rate` lines a second, `lines` in all."""
    training.prepare()
    rate = training.script["rate"]
    begun = time.monotonic()
    for number in range(training.script["lines"]):
        if number % (rate // 50) == 0:
            sys.stdout.flush()
            time.sleep(max(begun + number / rate - time.monotonic(), 0))
        sys.stdout.write(f"line {number} of a paced trainer\n")
    training.train()


def bar(training: Training) -> None:
    """A progress bar that stays unfinished until the file `go` appears; drawn anew `every` seconds."""
    training.prepare()
    for done in range(1, 6):
        sys.stderr.write(f"\r {done * 20}%|{'█' * done}{' ' * (5 - done)}| {done}/5 [00:01<00:00]")
        sys.stderr.flush()
    while not Path(training.script.get("go", "/never")).exists():
        time.sleep(training.script.get("every", 0.02))
        if "every" in training.script:
            sys.stderr.write("\r 100%|█████| 5/5 [00:01<00:00]")
            sys.stderr.flush()
    sys.stderr.write("\n")
    training.train()


def unfinished(training: Training) -> None:
    training.prepare()
    sys.stdout.write("last words")
    sys.stdout.flush()


def dies_at_once(training: Training) -> None:
    del training
    sys.exit(3)


def early_end(training: Training) -> None:
    training.prepare()


def launcher_killed(training: Training) -> None:
    """The parent (the launcher) is SIGKILLed and this rank goes on, as orphans do."""
    training.prepare()
    os.kill(os.getppid(), signal.SIGKILL)
    training.steps = 1_000_000
    training.train()


BEHAVIOURS = {
    function.__name__: function
    for function in (
        well_behaved,
        stubborn,
        nameless,
        raises,
        exits,
        lingers,
        ends_badly,
        killed,
        caching_hang,
        chatty,
        curve,
        says,
        paced,
        bar,
        dies_at_once,
        unfinished,
        early_end,
        launcher_killed,
    )
}


def main() -> None:
    # Should a test be killed itself, its trainers must not stay behind for ever.
    ctypes.CDLL(None).alarm(int(os.environ.get("SCRIPTED_ALARM", "300")))
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--deepspeed", action="store_true")
    parser.add_argument("--config", required=True)
    parser.add_argument("--master_port", type=int, required=True)
    parser.add_argument("--resume_from_checkpoint")
    for name in ("cache_only", "trust_cache", "regenerate_cache", "reset_dataloader"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    config = tomllib.loads(Path(options.config).read_text())
    if options.cache_only:
        say("caching latents: /data/set")
        return
    BEHAVIOURS[script_of(config).get("behaviour", "well_behaved")](Training(options, config))


if __name__ == "__main__":
    main()
