"""Everything that is wrong with a start, before it is made.

Why: a start says the first thing that is wrong with the machine and ends; somebody who fills in a form wants
all of it at once, at its fields, and also what a start would let pass: a model file that is not there.

Known gap: what train.py finds wrong with the files' content is not found here.
"""

from pathlib import Path

from dpiped import form_paths, launch, readying, resume, sources
from dpiped.errors import DpipedError, InvalidForm, InvalidInput, RunDamaged, UnknownRun
from dpiped.form import Form
from dpiped.messages import Finding, Resume, Validated
from dpiped.settings import Settings
from dpiped.sources import Wanted


def findings(settings: Settings, wanted: Wanted) -> tuple[Finding, ...]:
    """One finding per field, in the form's order where there is one. Writes nothing."""
    found = _in_form(settings, wanted, wanted.form) if wanted.form is not None else {}
    if not found:
        return _in_launch(settings, wanted)
    return tuple(Finding(field, text) for field, text in found.items())


def of_resume(settings: Settings, runs: Path, request: Resume) -> Validated:
    """The same for a resume, and what it would go on from. Raises UnknownRun, RunDamaged."""
    try:
        made = launch.make(settings, resume.plan(runs, request))
        traced = resume.trace(runs, made)
        assert made.resume is not None, "a resume has a folder"
        removed = readying.leftovers(made.resume.train_dir)
    except (UnknownRun, RunDamaged):
        raise
    except DpipedError as error:
        return Validated((Finding(error.field or "run", error.message, error.hint),))
    told = (
        (f"{', '.join(removed)} of {made.resume.train_dir.name} would be removed first",) if removed else ()
    )
    return Validated(
        (), traced.plan.spec.resumed_from, made.resume.tag, (*traced.plan.warnings, *told), traced.changes
    )


def _in_form(settings: Settings, wanted: Wanted, form: Form) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        sources.check_form(settings, wanted)
    except InvalidForm as error:
        found |= dict(error.fields)
    for field in form_paths.FOLDERS:
        try:
            form_paths.folder(settings, form, field)
        except InvalidInput as error:
            found[field] = error.message
    for field in sources.models(form):
        text = getattr(form, field)
        try:
            if form_paths.missing(settings, {field: text}):
                found[field] = f"there is nothing at {text!a:.300}; it takes a file or folder that exists"
        except InvalidInput as error:
            found[field] = error.message
    return dict(sorted(found.items(), key=lambda each: _position(each[0])))


def _in_launch(settings: Settings, wanted: Wanted) -> tuple[Finding, ...]:
    """A start up to the point where something would be written."""
    try:
        launch.make(settings, wanted)
    except InvalidForm as error:
        return tuple(Finding(field, text) for field, text in dict(error.fields).items())
    except DpipedError as error:
        return (Finding(error.field or "config", error.message, error.hint),)
    return ()


def _position(field: str) -> int:
    fields = Form.__struct_fields__
    return fields.index(field) if field in fields else len(fields)
