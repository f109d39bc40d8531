"""The DeepSpeed pipeline engine: set up, built around the layers, and restored from a checkpoint.

Why: DeepSpeed's log lines carry the step, the checkpoint and the run directory's path; since 0.19 they are
silent unless the logger's level is lowered. On CPUs DeepSpeed would compile a shared-memory operator at
the first start (half a minute, and a compiler is needed); gloo does the same work and is used instead.

Known gap: one node only is tested.
"""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import PipelineModule
from deepspeed.utils import logger

from dpiped.trainer import optimizer
from dpiped.trainer.batches import Batches, Layout, MicroBatch
from dpiped.trainer.checkpoint import Resume
from dpiped.trainer.config import ForSize, TrainConfig
from dpiped.trainer.flow import velocity_loss
from dpiped.trainer.model import Layer
from dpiped.trainer.output import say

SHARED_MEMORY_OP = "deepspeed_shm_comm"
LONGEST_WAIT = timedelta(hours=12)
"""How long a rank waits for another: rank 0 decodes pictures meanwhile. A rank that dies ends all at once."""


def set_up() -> None:
    """Logging, threads, the process group and this rank's device."""
    logger.setLevel(logging.INFO)
    for handler in logger.handlers:
        handler.setLevel(logging.INFO)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
        if "OMP_NUM_THREADS" not in os.environ:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
            torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks, 1))
    deepspeed.init_distributed(timeout=LONGEST_WAIT)
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))


def pipeline(config: TrainConfig, layers: list[Layer]) -> PipelineModule:
    """The layers, cut into stages; this rank keeps its own."""
    module = PipelineModule(layers, num_stages=config.pipeline_stages, loss_fn=velocity_loss)
    for parameter in module.parameters():
        # Else DeepSpeed clips by the norm of the first stage's gradients alone.
        parameter.model_parallel = True
    return module


def layout(module: PipelineModule, micro: ForSize, accumulation: int) -> Layout:
    """How this rank takes part in a global batch."""
    grid = module.mpu()
    return Layout(
        micro=micro,
        accumulation=accumulation,
        replicas=grid.get_data_parallel_world_size(),
        replica=grid.get_data_parallel_rank(),
    )


def build(config: TrainConfig, module: PipelineModule, batches: Batches, total_steps: int) -> Any:
    """The engine with optimizer and schedule; `total_steps` is where the schedule ends."""

    def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
        say(f"Global batch size = {batches.largest}")
        return optimizer.make(config.optimizer, parameters)

    def make_scheduler(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(made, optimizer.schedule(config, total_steps))

    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=make_optimizer,
        lr_scheduler=make_scheduler,
        config={
            "train_micro_batch_size_per_gpu": batches.largest_micro,
            "gradient_accumulation_steps": batches.layout.accumulation,
            "gradient_clipping": config.gradient_clipping,
            "steps_per_print": config.steps_per_print,
        },
    )
    return engine


class Shapes:
    """Tells the engine when the next batch has another shape than the last one.

    Stages agree once on the shapes that they send to each other, and would read the next one wrongly.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._last: tuple[int, ...] | None = None

    def expect(self, micro: int, size: tuple[int, int]) -> None:
        """To be called on every rank before a batch of `micro` pictures of this size."""
        if self._last is not None and self._last != (micro, *size):
            self._engine.reset_activation_shape()
        self._last = (micro, *size)


def train_batch(engine: Any, micro_batches: list[MicroBatch], micro: int) -> float:
    """One optimizer step; the mean loss. `micro` is the number of pictures in each micro batch."""
    engine.set_train_micro_batch_size(micro)  # what samples/sec is reckoned from
    return float(engine.train_batch(iter(micro_batches)).item())


def restore(engine: Any, resume: Resume, *, optimizer_state: bool, schedule: bool) -> dict[str, Any]:
    """Loads weights and what else is asked for; returns what the trainer itself had put in the checkpoint."""
    path, state = engine.load_checkpoint(
        str(resume.run_dir),
        tag=resume.tag,
        load_optimizer_states=optimizer_state,
        load_lr_scheduler_states=schedule,
    )
    if path is None:
        raise RuntimeError(f"DeepSpeed could not load {resume.run_dir / resume.tag}")
    own: dict[str, Any] = state["dpiped"]
    return own


def keeping_groups(made: torch.optim.Optimizer) -> Callable[[], None]:
    """Puts the optimizer's present learning rate and so on back once a checkpoint was loaded."""
    before = [
        {name: value for name, value in group.items() if name != "params"} for group in made.param_groups
    ]

    def put_back() -> None:
        for group, values in zip(made.param_groups, before, strict=True):
            group.update(values)

    return put_back
