"""What each field of the form means, in one sentence, with its unit and the group it stands in.

Why: the served schema, `dpipectl start --help` and a page are to explain a field in the same words. It stands
apart from `form.py`, since `dpipectl status` needs none of it. A test holds that every field has its entry.

Known gap: English only.
"""

from msgspec import Struct


class Help(Struct, frozen=True):
    """For a page: `group` it stands in, `unit` of the value if it has one, and one sentence."""

    group: str
    text: str
    unit: str | None = None


HELP: dict[str, Help] = {
    "dataset_path": Help("paths", "Folder of pictures or videos with captions, below the data sets."),
    "config_dir": Help("paths", "Folder that the two config files are written to, below the configs."),
    "output_dir": Help("paths", "Folder that the trained LoRA and checkpoints go to, below the outputs."),
    "transformer_path": Help("model", "The diffusion transformer, a .safetensors file."),
    "vae_path": Help("model", "The VAE, a .safetensors file."),
    "llm_path": Help("model", "The text encoder (LLM), a folder or file."),
    "clip_path": Help("model", "The CLIP text encoder, a folder or file."),
    "model_type": Help("model", "What is trained: hunyuan-video, or dpiped, the small embedded model."),
    "dtype": Help("model", "Type that the model computes in and the LoRA is trained in."),
    "rank": Help("model", "Rank of the LoRA; a higher one learns more and takes more memory."),
    "only_double_blocks": Help("model", "Taken and without effect: diffusion-pipe does not read it."),
    "activation_checkpointing": Help("model", "Computes activations again instead of keeping them."),
    "partition_method": Help("model", "How layers are divided among pipeline stages."),
    "resume_from_checkpoint": Help(
        "training", "True for the newest whole checkpoint in output_dir, or the name of a folder in it."
    ),
    "num_gpus": Help("training", "How many GPUs; empty for the daemon's setting.", "GPUs"),
    "pipeline_stages": Help(
        "training", "GPUs that share one copy of the model; empty for all. 1 trains a copy on each.", "GPUs"
    ),
    "epochs": Help("training", "How often the whole data set is gone through.", "epochs"),
    "batch_size": Help("training", "Examples per GPU in one forward pass (micro batch).", "examples"),
    "gradient_accumulation_steps": Help("training", "Micro batches that make one step.", "micro batches"),
    "gradient_clipping": Help("training", "Largest norm of a step's gradient."),
    "warmup_steps": Help("training", "Steps in which the learning rate rises to its value.", "steps"),
    "caching_batch_size": Help("training", "Examples at once while latents are cached.", "examples"),
    "save_every": Help("training", "The LoRA is saved every so many epochs.", "epochs"),
    "checkpoint_every_n_minutes": Help("training", "A checkpoint to resume from, so often.", "minutes"),
    "save_dtype": Help("training", "Type that the LoRA is saved in."),
    "learning_rate": Help("optimizer", "How far a step goes."),
    "optimizer_type": Help("optimizer", "An optimizer of diffusion-pipe, or a class of pytorch_optimizer."),
    "betas": Help("optimizer", "Decay of the averages of gradient and squared gradient; a JSON list."),
    "weight_decay": Help("optimizer", "Pull of the weights towards zero."),
    "eps": Help("optimizer", "Keeps the step finite where the gradient vanishes."),
    "num_repeats": Help("data set", "How often an epoch shows each example.", "times"),
    "resolutions_input": Help(
        "data set",
        "Sides that pictures are trained at, or [width, height]; a JSON list of one to three.",
        "pixels",
    ),
    "enable_ar_bucket": Help(
        "data set", "Sorts examples by aspect ratio instead of cropping all to squares."
    ),
    "min_ar": Help("data set", "Narrowest aspect ratio, width by height."),
    "max_ar": Help("data set", "Widest aspect ratio, width by height."),
    "num_ar_buckets": Help("data set", "How many aspect ratios from the narrowest to the widest.", "buckets"),
    "ar_buckets": Help("data set", "The aspect ratios themselves, or [width, height]; a JSON list or empty."),
    "frame_buckets": Help(
        "data set", "Lengths that videos are cut to; 1 is a picture; a JSON list.", "frames"
    ),
    "video_clip_mode": Help("data set", "Which part of a longer video is taken."),
    "eval_every": Help(
        "evaluation", "An evaluation every so many epochs, if there is an evaluation set.", "epochs"
    ),
    "eval_before_first_step": Help("evaluation", "An evaluation before the training begins."),
    "eval_micro_batch_size_per_gpu": Help("evaluation", "Examples per GPU in one pass.", "examples"),
    "eval_gradient_accumulation_steps": Help(
        "evaluation", "Micro batches evaluated at once.", "micro batches"
    ),
    "steps_per_print": Help("monitoring", "A line with step and loss every so many steps.", "steps"),
    "enable_wandb": Help("monitoring", "Sends the curves to Weights & Biases as well."),
    "wandb_run_name": Help("monitoring", "Name of the run there."),
    "wandb_tracker_name": Help("monitoring", "Name of the project there."),
    "wandb_api_key": Help("monitoring", "Your key there. It is written to no file that stays."),
}
