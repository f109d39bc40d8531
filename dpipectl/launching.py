"""`start`, `validate` and `resume`: from a config file, a form file or single fields to a run.

Why: a form and a config are two ways to say the same, so they share every option, and whoever tries a form
with `validate` starts it with the same words.

Known gap: a W&B key is taken from the form or the environment only; an option would show in the process list.
"""

import argparse
from typing import Any

from dpipectl import forms
from dpiped import messages
from dpiped.errors import InvalidInput
from dpiped.form import MOST_GPUS
from dpiped.messages import Form, Start, StartForm, Validate

FLAGS = (
    "dataset_path config_dir output_dir transformer_path vae_path llm_path clip_path model_type "
    "resume_from_checkpoint pipeline_stages epochs batch_size learning_rate optimizer_type rank num_repeats "
    "resolutions_input save_every"
).split()
"""Fields with an option of their own; `--set` sets any."""


def misuse(options: argparse.Namespace) -> str | None:
    """What is wrong with the words of `start` or `validate` as such."""
    of_form = options.form or options.fields or any(getattr(options, name) is not None for name in FLAGS)
    if options.config is None and not of_form:
        return "a training takes --config FILE, --form FILE or the fields of a form"
    if options.config is not None and of_form:
        return "--config is a whole training; a form and its fields don't go with it"
    return None


def start(options: argparse.Namespace) -> Start | StartForm:
    """The request. Raises InvalidInput, InvalidForm."""
    args, env = tuple(options.args), environment(options.env)
    if options.config is None:
        return StartForm(_form(options), args=args, env=env)
    return Start(absolute(options.config), num_gpus=gpus(options), args=args, env=env)


def validate(options: argparse.Namespace) -> Validate:
    """The request. Raises InvalidInput, InvalidForm."""
    args, env = tuple(options.args), environment(options.env)
    if options.config is None:
        return Validate(form=_form(options), args=args, env=env)
    return Validate(config=absolute(options.config), num_gpus=gpus(options), args=args, env=env)


def resume(options: argparse.Namespace) -> messages.Resume:
    """The request. Raises InvalidInput."""
    config = absolute(options.config) if options.config else None
    args, env = tuple(options.args), environment(options.env)
    return messages.Resume(options.run, config=config, num_gpus=gpus(options), args=args, env=env)


def check_resume(options: argparse.Namespace) -> Validate:
    """The request of `resume --check`. Raises InvalidInput."""
    wanted = resume(options)
    run, config = wanted.run or "last", wanted.config
    return Validate(config=config, num_gpus=wanted.num_gpus, args=wanted.args, env=wanted.env, resume=run)


def absolute(path: str) -> str:
    """The daemon has another working directory. pathlib is slow to import, and `status` needs none."""
    from pathlib import Path

    return str(Path(path).absolute())


def gpus(options: argparse.Namespace) -> int | None:
    """How many were asked for. Raises InvalidInput."""
    number: int | None = options.num_gpus
    # The daemon checks this as well, but has only a type to say it with.
    if number is not None and not 1 <= number <= MOST_GPUS:
        raise InvalidInput(f"--num-gpus takes 1 to {MOST_GPUS}, not {number}", field="num_gpus")
    return number


def environment(pairs: list[str]) -> dict[str, str]:
    """NAME=VALUE words. Raises InvalidInput."""
    env = {}
    for number, pair in enumerate(pairs, 1):
        name, equals, value = pair.partition("=")
        # The daemon checks this as well, but has only a pattern to say it with.
        if not equals or not name.isascii() or not name.isidentifier():
            # Not what it is instead: somebody may have left the name out before a key.
            text = "--env takes NAME=VALUE, with a NAME of letters, digits and underscores"
            raise InvalidInput(f"{text}; --env number {number} is not like that", field="env")
        env[name] = value
    return env


def _form(options: argparse.Namespace) -> Form:
    """The file's fields, and over them those of the command line."""
    data = forms.read_file(options.form) if options.form else {}
    return forms.convert(data | _fields(options))


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    texts = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    for pair in options.fields:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput("--set takes FIELD=VALUE", field="set")
        texts[name] = value
    fields = {name: forms.from_text(name, text) for name, text in texts.items()}
    return fields | ({"num_gpus": options.num_gpus} if options.num_gpus is not None else {})
