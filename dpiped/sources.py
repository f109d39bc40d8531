"""What was asked for, and the training TOML that it means: a file, a form, or the snapshot of a run.

Why: a form and a file are launched by the same code, so that one is not checked less than the other. Here a
form becomes a config in memory; nothing is written before everything is checked.

Known gap: none.
"""

from pathlib import Path

from msgspec import Struct

from dpiped import arguments, configs, form_paths, forms, paths, tomltext
from dpiped.configs import Source
from dpiped.form import Form
from dpiped.rundir import DATASET_TOML, TRAINING_TOML, Spec
from dpiped.settings import Settings, training_environment

WANDB_KEY = "WANDB_API_KEY"
"""The variable that a key hidden in a config is taken from."""


class Wanted(Struct, frozen=True):
    """What was asked for: a `config` file or a `form`.

    `resume` is a folder, True for the newest complete one, or None. `origin` is the run that is resumed;
    without a config of its own the new run counts as the same one.
    """

    config: Path | None = None
    form: Form | None = None
    num_gpus: int | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    resume: Path | bool | None = None
    origin: Spec | None = None
    service: bool = False

    def __repr__(self) -> str:
        """Without what may be secret."""
        return f"Wanted({self.config or 'a form'})"

    def gpus(self, settings: Settings) -> int:
        """How many GPUs the training is to have."""
        return self.num_gpus or (self.form.num_gpus if self.form else None) or settings.num_gpus


class Setup(Struct, frozen=True):
    """Where the training is described, and what it may read and write.

    `publish` are the files of a form, by resolved path, that are written where it asked for them; `warnings`
    say what will probably fail.
    """

    source: Source
    roots: tuple[Path, ...]
    publish: dict[Path, bytes] = {}
    warnings: tuple[str, ...] = ()


def find(settings: Settings, wanted: Wanted) -> Setup:
    """Raises InvalidInput, InvalidForm."""
    if wanted.form is not None:
        return _of_form(settings, wanted, wanted.form)
    roots = settings.allowed_roots
    if wanted.origin is not None:
        # A run's own snapshot may be resumed wherever the state directory is.
        roots = (*roots, settings.state_dir / "runs" / wanted.origin.run)
        roots += _form_roots(settings) if wanted.origin.form else ()
    assert wanted.config is not None, "either a config or a form"
    return Setup(configs.read(paths.confine(str(wanted.config), "config", roots)), roots)


def check_form(settings: Settings, wanted: Wanted) -> forms.Lists:
    """All that is wrong with the form itself, without a look at its paths. Raises InvalidForm.

    Raises InvalidInput for what is wrong with the arguments.
    """
    assert wanted.form is not None
    knowing = arguments.KNOWING in arguments.read(wanted.args).words
    key = (training_environment(settings) | wanted.env).get(WANDB_KEY)
    return forms.check(wanted.form, wanted.gpus(settings), key, many=knowing)


def make_files(settings: Settings, wanted: Wanted) -> forms.Files:
    """The two files of a form. Raises InvalidForm, or InvalidInput for its paths."""
    assert wanted.form is not None
    lists = check_form(settings, wanted)
    found = form_paths.of_form(settings, wanted.form, (*form_paths.FOLDERS, *models(wanted.form)))
    return forms.generate(wanted.form, lists, found, wanted.gpus(settings))


def models(form: Form) -> tuple[str, ...]:
    """The fields that name model files; the embedded trainer needs none."""
    return () if form.model_type == forms.EMBEDDED else form_paths.MODELS


def _form_roots(settings: Settings) -> tuple[Path, ...]:
    """What a form may name beyond the roots of models."""
    return tuple(form_paths.roots(settings, field)[0] for field in form_paths.FOLDERS)


def _of_form(settings: Settings, wanted: Wanted, form: Form) -> Setup:
    files = make_files(settings, wanted)
    text, dataset = files.training_toml, files.dataset_toml
    missing = form_paths.missing(settings, {field: getattr(form, field) for field in models(form)})
    source = Source(
        files.training_path, text, tomltext.loads(text), files.key, {str(files.dataset_path): dataset}
    )
    # Where the folder leads to, checked once more: nothing that comes after may lead them elsewhere.
    where = paths.confine(
        str(files.training_path.parent),
        "config_dir",
        form_paths.roots(settings, "config_dir"),
        shown=form.config_dir,
    )
    return Setup(
        source,
        (*settings.allowed_roots, *_form_roots(settings)),
        {where / DATASET_TOML: dataset.encode(), where / TRAINING_TOML: text.encode()},
        tuple(f"{each.field}: there is nothing at {each.path!a}" for each in missing),
    )
