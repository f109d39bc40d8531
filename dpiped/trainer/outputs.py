"""What a training leaves behind while it runs: checkpoints, saved models, sample images.

Why: each is written by rank 0 from what all ranks give it, and must be whole whenever it is there. Older
ones are removed only once the new one is, and only if that was asked for.

Known gap: drawn and written while all ranks wait.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dpiped.trainer import checkpoint, preview
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.flow import sample
from dpiped.trainer.output import say
from dpiped.trainer.saving import Average
from dpiped.trainer.spec import ModelSpec


@dataclass(frozen=True)
class Product:
    """What is trained: how to save its weights in a directory, and how to make a whole model of them."""

    spec: ModelSpec
    save: Callable[[Path, dict[str, Tensor]], None]
    assemble: Callable[[dict[str, Tensor]], nn.Module]


class Outputs:
    """Writes into the run directory. Every rank has to call every method."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Any,
        average: Average,
        product: Product,
        run_dir: Path,
        captions: list[str],
    ) -> None:
        self._config, self._engine, self._average = config, engine, average
        self._product, self._run_dir, self._captions = product, run_dir, captions
        self._main = engine.global_rank == 0
        self._contributes = engine.mpu.get_data_parallel_rank() == 0
        self._last_checkpoint = engine.global_steps
        self._checkpoint_time = time.monotonic()

    @property
    def minutes_since_checkpoint(self) -> float:
        return (time.monotonic() - self._checkpoint_time) / 60

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Unless this step's checkpoint is there already. `state` is what the loop goes on from."""
        step = self._engine.global_steps
        if self._last_checkpoint == step:
            return
        tag = f"global_step{step}"
        own = {**state, "average": self._average.weights}
        self._engine.save_checkpoint(
            str(self._run_dir), tag=tag, client_state={"dpiped": own}, save_latest=False
        )
        if self._main:
            checkpoint.publish(self._run_dir, tag)
            if self._config.keep_last_n_checkpoints is not None:
                checkpoint.prune(self._run_dir, self._config.keep_last_n_checkpoints)
        torch.distributed.barrier()
        self._last_checkpoint = step
        self._checkpoint_time = time.monotonic()

    def save(self, names: list[str], writer: SummaryWriter | None) -> None:
        """Saves the averaged weights under these names, and draws samples with them."""
        weights = self._average.gather(self._contributes)
        for name in names:
            if self._main:
                say(f"Saving model to directory {name}")
                self._product.save(self._run_dir / name, weights)
        if self._main and names and self._config.keep_last_n_models is not None:
            _prune_models(self._run_dir, self._config.keep_last_n_models)
        if writer is not None and self._captions:
            self._draw(weights, writer)
        torch.distributed.barrier()

    def _draw(self, weights: dict[str, Tensor], writer: SummaryWriter) -> None:
        model = self._product.assemble(weights).to(self._engine.device)
        images = sample(
            model,
            self._product.spec,
            self._captions,
            steps=self._config.sampling_steps,
            guidance=self._config.guidance,
            seed=self._config.seed,
        )
        preview.publish(self._run_dir, self._engine.global_steps, images, self._captions, writer)


def _prune_models(run_dir: Path, keep: int) -> None:
    """Removes all saved models but the `keep` newest."""
    models = [
        path
        for kind in ("epoch", "step")
        for path in run_dir.glob(f"{kind}*")
        if path.is_dir() and path.name[len(kind) :].isdigit()
    ]
    models.sort(key=lambda path: path.stat().st_mtime_ns)
    for old in models[:-keep]:
        shutil.rmtree(old)
