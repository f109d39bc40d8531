"""From a checked job to a training that has ended: the phases in their order.

Why: start-up is where most trainings fail, so its phases are printed in diffusion-pipe's words and order,
and the run directory is made only when the model stands.

Known gap: the base of an adapter is read by every rank.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from deepspeed.utils import logger

from dpiped.trainer import data, engine, examples, optimizer, preview
from dpiped.trainer.batches import Batches, Draw
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.data import Data
from dpiped.trainer.evaluation import Evaluation
from dpiped.trainer.job import Job
from dpiped.trainer.loop import Loop, Position
from dpiped.trainer.model import Layer
from dpiped.trainer.output import say
from dpiped.trainer.outputs import Outputs
from dpiped.trainer.product import Trained, build
from dpiped.trainer.saving import Average, write_copies
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError
from dpiped.trainer.text import Tokenizer, build_vocabulary, longest, split_words


def run(job: Job) -> int:
    """Trains to the end, or until told to quit. Returns the exit code. Raises ConfigError."""
    optimizer.check(job.config.optimizer)
    engine.set_up()
    try:
        return _run(job)
    finally:
        failed = sys.exc_info()[0]
        if torch.distributed.is_initialized() and failed in (None, ConfigError):
            torch.distributed.destroy_process_group()


def _run(job: Job) -> int:
    config, main = job.config, torch.distributed.get_rank() == 0
    found = data.prepare(job, main)
    if job.cache_only:
        return 0
    captions = examples.captions(found.train)
    prompts = (
        preview.default_prompts(captions) if config.sample_prompts is None else list(config.sample_prompts)
    )
    spec = job.resume.spec if job.resume else _new_spec(config, captions + prompts)
    trained = build(config, spec, job.resume.base if job.resume and job.resume.base else config.model.base)
    if job.resume:
        trained.check(job.resume.run_dir)
    if main:
        _warn_cut(captions, spec.max_tokens)
        _print_parameters(trained.layers)
    module = engine.pipeline(config, trained.layers)
    batches, evaluation = _batches(config, found, spec, module)
    run_dir = job.resume.run_dir if job.resume else _make_run_dir(config, trained, main)
    total = min(config.epochs * batches.steps_per_epoch, config.max_steps or sys.maxsize)
    made = engine.build(config, module, batches, total)
    average = Average(made.module, config.ema_decay)
    position = _restore(job, made, average, batches) if job.resume else Position()
    outputs = Outputs(config, made, average, trained.product, run_dir, prompts)
    return Loop(config, made, batches, evaluation, average, outputs, run_dir, position).run()


def _new_spec(config: TrainConfig, captions: list[str]) -> ModelSpec:
    return config.model_spec(build_vocabulary(captions), longest(captions))


def _warn_cut(captions: list[str], most: int) -> None:
    cut = [caption for caption in captions if len(split_words(caption)) > most]
    if cut:
        logger.warning(f"{len(cut)} captions have more than {most} words and are cut, one is {cut[0]!r}")


def _print_parameters(layers: list[Layer]) -> None:
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    share = 100 * trainable / total
    say(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}")


def _batches(config: TrainConfig, found: Data, spec: ModelSpec, module: Any) -> tuple[Batches, Evaluation]:
    """What is trained and evaluated on. Raises ConfigError if no bucket has a whole batch."""
    tokenizer = Tokenizer(spec.vocabulary, spec.max_tokens)
    draw = Draw(config.seed, config.uncond_fraction, config.model.timestep_sample_method == "logit_normal")
    how = engine.layout(module, config.micro_batch, config.gradient_accumulation_steps)
    batches = Batches(found.train, tokenizer, how, draw)
    for bucket in batches.dropped:
        width, height = bucket.size
        batch, number = how.global_batch(bucket.size), len(bucket.examples)
        text = f"size bucket ({width}, {height}, 1) is being completely dropped: it has {number} examples, "
        if batches.steps_per_epoch == 0:
            raise ConfigError(f"micro_batch_size_per_gpu: {text}and a global batch has {batch}")
        if torch.distributed.get_rank() == 0:
            logger.warning(f"{text}and a global batch has {batch}")
    eval_how = engine.layout(module, config.eval_micro_batch, config.eval_accumulation_steps)
    evaluation = Evaluation(found.evaluation, tokenizer, eval_how, draw)
    if torch.distributed.get_rank() == 0:
        for text in evaluation.left_out:
            logger.warning(text)
    return batches, evaluation


def _make_run_dir(config: TrainConfig, trained: Trained, main: bool) -> Path:
    """Made by rank 0, named after the second in UTC; told to all."""
    made = None
    if main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        while made is None:
            path = config.output_dir / time.strftime("%Y%m%d_%H-%M-%S", time.gmtime())
            try:
                path.mkdir()
                made = str(path)
            except FileExistsError:  # another training's second
                time.sleep(0.1)
        write_copies(config.copies(), path)
        trained.describe(path)
    return Path(data.told(made))


def _restore(job: Job, made: Any, average: Average, batches: Batches) -> Position:
    """Loads weights, optimizer, average and position from the checkpoint to resume from."""
    assert job.resume is not None
    put_back = engine.keeping_groups(made.optimizer)
    keep = not job.reset_optimizer
    saved = engine.restore(
        made, job.resume, optimizer_state=keep, schedule=keep and not job.reset_optimizer_params
    )
    if job.reset_optimizer_params:
        put_back()
    average.load(saved["average"])
    position = Position(**saved["position"])
    changed = saved["plan"] != batches.plan
    if job.reset_dataloader or changed:
        position = Position(epoch=position.epoch)
    if made.global_rank == 0:
        if changed:
            say(f"The data set or the global batch has changed: epoch {position.epoch} begins again")
        step = made.global_steps + 1
        say(f"Resuming training from checkpoint. Resuming at epoch: {position.epoch}, step: {step}")
    return position
