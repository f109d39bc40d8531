"""From a checked job to a DeepSpeed pipeline engine that is ready to train, and the run around it.

Why: start-up is where most trainings fail, so its phases are printed in diffusion-pipe's words and order,
and the run directory is made only when the model stands.

DeepSpeed's log lines carry the step, the checkpoint and the run directory's path; since 0.19 they are
silent unless the logger's level is lowered. On CPUs DeepSpeed would compile a shared-memory operator at
the first start (half a minute, and a compiler is needed); gloo does the same work and is used instead.

Known gap: one node only is tested.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import PipelineModule
from deepspeed.utils import logger
from tqdm import tqdm  # type: ignore[import-untyped]

from dpiped.trainer import dataset, optimizer
from dpiped.trainer.batches import Batches, Draw, Layout
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.dataset import Images, Item
from dpiped.trainer.flow import velocity_loss
from dpiped.trainer.job import Job, check_batch
from dpiped.trainer.loop import Loop, Position
from dpiped.trainer.model import Layer, build_layers
from dpiped.trainer.output import say
from dpiped.trainer.saving import Average
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.text import Tokenizer, build_vocabulary, longest

SHARED_MEMORY_OP = "deepspeed_shm_comm"


def run(job: Job) -> int:
    """Trains to the end, or until told to quit. Returns the exit code. Raises ConfigError."""
    config = job.config
    optimizer.check(config.optimizer)
    _set_up()
    try:
        return _run(job)
    finally:
        if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()


def _run(job: Job) -> int:
    config, main = job.config, torch.distributed.get_rank() == 0
    images = _load_images(job, main)
    if job.cache_only:
        return 0
    spec = job.resume.spec if job.resume else _new_spec(config, images)
    layers = build_layers(spec, config.seed, config.model.dtype == "bfloat16")
    if main:
        _print_parameters(layers)
    run_dir = job.resume.run_dir if job.resume else _make_run_dir(config, spec, main)
    engine, batches = _build_engine(config, layers, images, Tokenizer(spec.vocabulary, spec.max_tokens))
    average = Average(engine.module, config.ema_decay)
    position = _restore(job, engine, average, len(batches)) if job.resume else Position()
    loop = Loop(config, spec, engine, batches, average, run_dir, position)
    return loop.run(images.items)


def _set_up() -> None:
    logger.setLevel(logging.INFO)
    for handler in logger.handlers:
        handler.setLevel(logging.INFO)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
        if "OMP_NUM_THREADS" not in os.environ:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
            torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks, 1))
    deepspeed.init_distributed()
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _load_images(job: Job, main: bool) -> Images:
    config = job.config.dataset
    if main:
        for path in job.scan.without_caption:
            # The spelling is diffusion-pipe's; people and programs look for it.
            logger.warning(f"Cound not find caption for {path}. Skipping image.")
        if job.scan.not_images:
            logger.warning(f"Skipping files that are not images: {_names(job.scan.not_images)}")
        for directory in config.directories:
            say(f"caching latents: {directory.path}")

    def progress(items: tuple[Item, ...]) -> Iterator[Item]:
        yield from tqdm(items, disable=not main, file=sys.stderr)

    images = dataset.load(job.scan, config.resolution, progress)
    if main:
        if images.unreadable:
            logger.warning(f"Skipping images that can't be read: {_names(images.unreadable)}")
        for directory in config.directories:
            say(f"caching text embeddings: {directory.path}")
    check_batch(job.config, len(images.examples()), torch.distributed.get_world_size())
    return images


def _names(paths: tuple[Path, ...]) -> str:
    return ", ".join(str(path) for path in paths)


def _new_spec(config: TrainConfig, images: Images) -> ModelSpec:
    captions = [item.caption for item in images.items]
    prompts = list(config.sample_prompts or ())
    return config.model_spec(build_vocabulary(captions), longest(captions + prompts))


def _print_parameters(layers: list[Layer]) -> None:
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    share = 100 * trainable / total
    say(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}")


def _make_run_dir(config: TrainConfig, spec: ModelSpec, main: bool) -> Path:
    """Made by rank 0, named after the second in UTC; told to all."""
    made: list[Any] = [None]
    if main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        while made[0] is None:
            path = config.output_dir / time.strftime("%Y%m%d_%H-%M-%S", time.gmtime())
            try:
                path.mkdir()
                made[0] = path
            except FileExistsError:  # another training's second
                time.sleep(0.1)
        for source in (config.source, config.dataset.source):
            shutil.copyfile(source, made[0] / source.name)
        spec.write(made[0])
    torch.distributed.broadcast_object_list(made)
    return Path(made[0])


def _build_engine(
    config: TrainConfig, layers: list[Layer], images: Images, tokenizer: Tokenizer
) -> tuple[Any, Batches]:
    module = PipelineModule(layers, num_stages=config.pipeline_stages, loss_fn=velocity_loss)
    grid = module.mpu()
    layout = Layout(
        micro=config.micro_batch_size,
        accumulation=config.gradient_accumulation_steps,
        replicas=grid.get_data_parallel_world_size(),
        replica=grid.get_data_parallel_rank(),
    )
    logit_normal = config.model.timestep_sample_method == "logit_normal"
    batches = Batches(images, tokenizer, layout, Draw(config.seed, config.uncond_fraction, logit_normal))
    total = min(config.epochs * batches.steps_per_epoch, config.max_steps or sys.maxsize)

    def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
        say(f"Global batch size = {layout.global_batch}")
        return optimizer.make(config.optimizer, parameters)

    def make_scheduler(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(made, optimizer.schedule(config, total))

    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=make_optimizer,
        lr_scheduler=make_scheduler,
        config={
            "train_micro_batch_size_per_gpu": layout.micro,
            "gradient_accumulation_steps": layout.accumulation,
            "gradient_clipping": config.gradient_clipping,
            "steps_per_print": config.steps_per_print,
        },
    )
    return engine, batches


def _restore(job: Job, engine: Any, average: Average, examples: int) -> Position:
    """Loads weights, optimizer, average and position from the checkpoint to resume from."""
    assert job.resume is not None
    keep = not job.reset_optimizer
    path, state = engine.load_checkpoint(
        str(job.resume.run_dir),
        tag=job.resume.tag,
        load_optimizer_states=keep,
        load_lr_scheduler_states=keep,
    )
    if path is None:
        raise RuntimeError(f"DeepSpeed could not load {job.resume.run_dir / job.resume.tag}")
    saved = state["dpiped"]
    average.load(saved["average"])
    position = Position(**saved["position"])
    changed = saved["examples"] != examples
    if job.reset_dataloader or changed:
        position = Position(epoch=position.epoch)
    if engine.global_rank == 0:
        if changed:
            say(
                f"The data set has {examples} examples instead of {saved['examples']}: "
                f"epoch {position.epoch} begins again"
            )
        step = engine.global_steps + 1
        say(f"Resuming training from checkpoint. Resuming at epoch: {position.epoch}, step: {step}")
    return position
