"""The training loop: steps, epochs, what is saved when, and the two signal files.

Why: what happens after a step must happen on all ranks or none, else they wait for each other for ever. So
rank 0 alone looks at the clock and at the files `save` and `save_quit`, and tells the others.

Order after a step, as in diffusion-pipe: checkpoint, saved models, sample images, the new epoch's line,
signal files.

Known gap: signal files are looked at once per step, never while saving or sampling.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.utils.tensorboard import SummaryWriter

from dpiped.trainer import checkpoint, preview
from dpiped.trainer.batches import Batches
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.dataset import Item
from dpiped.trainer.flow import sample
from dpiped.trainer.output import say
from dpiped.trainer.saving import Average, assemble, save_model
from dpiped.trainer.spec import ModelSpec

SIGNALS = ("save", "save_quit")


@dataclass
class Position:
    """Where training stands: `consumed` examples of `epoch` are done; the losses are those of the epoch."""

    epoch: int = 1
    consumed: int = 0
    loss_sum: float = 0.0
    losses: int = 0


class Loop:
    """One training from its position to its end."""

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        engine: Any,
        batches: Batches,
        average: Average,
        run_dir: Path,
        position: Position,
    ) -> None:
        self._config, self._spec, self._engine, self._batches = config, spec, engine, batches
        self._average, self._run_dir, self._position = average, run_dir, position
        self._main = engine.global_rank == 0
        # Steps done after the checkpoint, and now done again, replace the old ones in TensorBoard.
        first = engine.global_steps + 1
        self._writer = SummaryWriter(str(run_dir), purge_step=first) if self._main else None
        self._last_checkpoint = engine.global_steps
        self._checkpoint_time = time.monotonic()
        self._captions: list[str] = []
        self._save_steps = config.save_every_n_steps
        if config.save_every_n_examples:
            self._save_steps = config.save_every_n_examples // batches.layout.global_batch
            self._print(f"Computed save_every_n_steps = {self._save_steps}")

    @property
    def _step(self) -> int:
        return int(self._engine.global_steps)

    def run(self, items: tuple[Item, ...]) -> int:
        """Trains to the end or until `save_quit`; 0 either way."""
        prompts = self._config.sample_prompts
        self._captions = preview.default_prompts(items) if prompts is None else list(prompts)
        try:
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

    def _finished(self) -> bool:
        return self._position.epoch > self._config.epochs or self._at_max_steps()

    def _at_max_steps(self) -> bool:
        return self._config.max_steps is not None and self._step >= self._config.max_steps

    def _advance(self) -> bool:
        """One step and all that is due after it. True if the run is to be quit."""
        epoch = self._position.epoch
        self._train_step()
        ended = self._position.epoch > epoch
        minutes, save, save_quit = self._look()
        if minutes or (ended and _due(epoch, self._config.checkpoint_every_n_epochs)) or self._finished():
            self._checkpoint()
        self._save_due_models(epoch, ended)
        if self._finished():
            return False
        if ended:
            self._print(f"Started new epoch: {self._position.epoch}")
        if save or save_quit:
            self._checkpoint()
            self._remove_signals(save, save_quit)
        return save_quit

    def _train_step(self) -> None:
        position = self._position
        loss = self._engine.train_batch(self._batches.micro_batches(position.epoch, position.consumed)).item()
        self._average.update(self._step)
        size = self._batches.layout.global_batch
        position.consumed += size
        position.loss_sum += loss
        position.losses += 1
        if self._writer is not None and self._step % self._config.logging_steps == 0:
            self._writer.add_scalar("train/loss", loss, self._step)
            self._writer.add_scalar("train/lr", self._engine.get_lr()[0], self._step)
        if position.consumed + size > len(self._batches):
            if self._writer is not None:
                self._writer.add_scalar(
                    "train/epoch_loss", position.loss_sum / position.losses, position.epoch
                )
            self._position = Position(position.epoch + 1)

    def _look(self) -> tuple[bool, bool, bool]:
        """(a checkpoint is due by the clock, `save` is there, `save_quit` is there); equal on all ranks."""
        seen = [False, False, False]
        if self._main:
            minutes = self._config.checkpoint_every_n_minutes
            due = minutes is not None and time.monotonic() - self._checkpoint_time >= 60 * minutes
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

    def _checkpoint(self) -> None:
        """Unless this step's checkpoint is there already."""
        if self._last_checkpoint == self._step:
            return
        tag = f"global_step{self._step}"
        state = {
            "position": asdict(self._position),
            "examples": len(self._batches),
            "average": self._average.weights,
        }
        self._engine.save_checkpoint(
            str(self._run_dir), tag=tag, client_state={"dpiped": state}, save_latest=False
        )
        if self._main:
            checkpoint.publish(self._run_dir, tag)
        torch.distributed.barrier()
        self._last_checkpoint = self._step
        self._checkpoint_time = time.monotonic()

    def _save_due_models(self, epoch: int, ended: bool) -> None:
        names = []
        last = self._finished()
        if (ended and _due(epoch, self._config.save_every_n_epochs)) or (last and not self._at_max_steps()):
            names.append(f"epoch{epoch}")
        if _due(self._step, self._save_steps) or (last and self._at_max_steps()):
            names.append(f"step{self._step}")
        if not names and not (ended and _due(epoch, self._config.sample_every_n_epochs)):
            return
        weights = self._average.gather(contributes=self._batches.layout.replica == 0)
        for name in names:
            self._print(f"Saving model to directory {name}")
            if self._main:
                copies = (self._config.source, self._config.dataset.source)
                save_model(self._run_dir / name, weights, self._config.save_dtype, self._spec, copies)
        if self._writer is not None and self._captions:
            self._draw(weights, self._writer)
        torch.distributed.barrier()

    def _draw(self, weights: dict[str, torch.Tensor], writer: SummaryWriter) -> None:
        images = sample(
            assemble(self._spec, weights).to(self._engine.device),
            self._spec,
            self._captions,
            steps=self._config.sampling_steps,
            guidance=self._config.guidance,
            seed=self._config.seed,
        )
        preview.publish(self._run_dir, self._step, images, self._captions, writer)

    def _print(self, text: str) -> None:
        if self._main:
            say(text)


def _due(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
