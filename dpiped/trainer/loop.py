"""The training loop: steps, epochs, what is due when, and the two signal files.

Why: what happens after a step must happen on all ranks or none, else they wait for each other for ever. So
rank 0 alone looks at the clock and at the files `save` and `save_quit`, and tells the others.

Order after a step, as in diffusion-pipe: checkpoint, saved models, sample images, the new epoch's line,
evaluation, signal files.

Known gap: signal files are looked at once per step, never while saving, sampling or evaluating.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.utils.tensorboard import SummaryWriter

from dpiped.trainer import engine as engines
from dpiped.trainer.batches import Batches
from dpiped.trainer.config import Every, TrainConfig
from dpiped.trainer.data import told
from dpiped.trainer.engine import Shapes
from dpiped.trainer.evaluation import Evaluation
from dpiped.trainer.output import say
from dpiped.trainer.outputs import Outputs
from dpiped.trainer.saving import Average

SIGNALS = ("save", "save_quit")
FLUSH = 5
"""Seconds until a point of a curve is in its file."""


@dataclass
class Position:
    """Where training stands: `done` steps of `epoch`; the losses are those of the epoch."""

    epoch: int = 1
    done: int = 0
    loss_sum: float = 0.0
    losses: int = 0


class Loop:
    """One training from its position to its end."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Any,
        batches: Batches,
        evaluation: Evaluation,
        average: Average,
        outputs: Outputs,
        run_dir: Path,
        position: Position,
    ) -> None:
        self._config, self._engine, self._batches, self._outputs = config, engine, batches, outputs
        self._evaluation, self._average = evaluation, average
        self._run_dir, self._position = run_dir, position
        self._shapes = Shapes(engine)
        self._main = engine.global_rank == 0
        # Steps done after the checkpoint, and now done again, replace the old ones in TensorBoard.
        first = engine.global_steps + 1
        # A curve that is minutes late looks like a training that hangs, and a killed one would lose them.
        self._writer = SummaryWriter(str(run_dir), purge_step=first, flush_secs=FLUSH) if self._main else None
        self._save_steps = self._in_steps("save", config.save_every)
        self._eval_steps = self._in_steps("eval", config.eval_every)

    def _in_steps(self, what: str, every: Every) -> int | None:
        if not every.examples:
            return every.steps
        steps = max(every.examples // self._batches.largest, 1)
        self._print(f"Computed {what}_every_n_steps = {steps}")
        return steps

    @property
    def _step(self) -> int:
        return int(self._engine.global_steps)

    def run(self) -> int:
        """Trains to the end or until `save_quit`; 0 either way."""
        try:
            if self._step == 0 and self._config.eval_before_first_step:
                self._evaluate()
            if self._finished():
                self._make_up()
            while not self._finished():
                if self._advance():
                    say("Manually quitting")
                    return 0
        finally:
            if self._writer is not None:
                self._writer.close()
        if self._main:
            for name in SIGNALS:
                (self._run_dir / name).unlink(missing_ok=True)
        self._print("TRAINING COMPLETE!")
        return 0

    def _make_up(self) -> None:
        """The last model, if a training that had come to its end could not save it any more."""
        name = f"step{self._step}" if self._at_max_steps() else f"epoch{self._position.epoch - 1}"
        if not told((self._run_dir / name).is_dir()):
            self._outputs.save([name], self._writer)

    def _finished(self) -> bool:
        return self._position.epoch > self._config.epochs or self._at_max_steps()

    def _at_max_steps(self) -> bool:
        return self._config.max_steps is not None and self._step >= self._config.max_steps

    def _advance(self) -> bool:
        """One step and all that is due after it. True if the run is to be quit."""
        config, epoch = self._config, self._position.epoch
        self._train_step()
        ended = self._position.epoch > epoch
        minutes, save, save_quit = self._look()
        if minutes or (ended and _due(epoch, config.checkpoint_every_n_epochs)) or self._finished():
            self._outputs.checkpoint(self._state())
        self._save_due_models(epoch, ended)
        if ended and not self._finished():
            self._print(f"Started new epoch: {self._position.epoch}")
        if (ended and _due(epoch, config.eval_every.epochs)) or _due(self._step, self._eval_steps):
            self._evaluate()
        if self._finished():
            return False
        if save or save_quit:
            self._outputs.checkpoint(self._state())
            self._remove_signals(save, save_quit)
        return save_quit

    def _train_step(self) -> None:
        position, batches = self._position, self._batches
        step = batches.step(position.epoch, position.done)
        micro = batches.layout.micro(step.size)
        self._shapes.expect(micro, step.size)
        # What dropout draws is a function of seed, step and replica too.
        torch.manual_seed((self._config.seed << 32) + self._step * 1024 + batches.layout.replica)
        parts = list(batches.micro_batches(position.epoch, step))
        loss = engines.train_batch(self._engine, parts, micro)
        self._average.update(self._step)
        position.done += 1
        position.loss_sum += loss
        position.losses += 1
        if self._writer is not None and self._step % self._config.logging_steps == 0:
            self._writer.add_scalar("train/loss", loss, self._step)
            self._writer.add_scalar("train/lr", self._engine.get_lr()[0], self._step)
        if position.done == batches.steps_per_epoch:
            if self._writer is not None:
                mean = position.loss_sum / position.losses
                self._writer.add_scalar("train/epoch_loss", mean, position.epoch)
            self._position = Position(position.epoch + 1)

    def _look(self) -> tuple[bool, bool, bool]:
        """(a checkpoint is due by the clock, `save` is there, `save_quit` is there); equal on all ranks."""
        seen = [False, False, False]
        if self._main:
            minutes = self._config.checkpoint_every_n_minutes
            due = minutes is not None and self._outputs.minutes_since_checkpoint >= minutes
            seen = [due, *((self._run_dir / name).is_file() for name in SIGNALS)]
        if torch.distributed.get_world_size() > 1:
            told = torch.tensor(seen, dtype=torch.int32, device=self._engine.device)
            torch.distributed.broadcast(told, 0)
            seen = [bool(value) for value in told.tolist()]
        return seen[0], seen[1], seen[2]

    def _remove_signals(self, *seen: bool) -> None:
        if self._main:
            for name, there in zip(SIGNALS, seen, strict=True):
                if there:
                    (self._run_dir / name).unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:
        return {"position": asdict(self._position), "plan": self._batches.plan}

    def _save_due_models(self, epoch: int, ended: bool) -> None:
        names = []
        last = self._finished()
        if (ended and _due(epoch, self._config.save_every.epochs)) or (last and not self._at_max_steps()):
            names.append(f"epoch{epoch}")
        if _due(self._step, self._save_steps) or (last and self._at_max_steps()):
            names.append(f"step{self._step}")
        if names or (ended and _due(epoch, self._config.sample_every_n_epochs)):
            self._outputs.save(names, self._writer)

    def _evaluate(self) -> None:
        self._evaluation.run(self._engine, self._shapes, self._writer, self._step)

    def _print(self, text: str) -> None:
        if self._main:
            say(text)


def _due(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
