"""A form from outside, a file or a request's body, turned into the typed message: with every fault at once.

Why: the decoder stops at the first field that does not fit, and says it in terms of types. Somebody who fills
in forty fields wants to know all that are wrong, and what each takes.

Known gap: what takes two fields, or a look at the machine, is found by the daemon only.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from dpiped import messages
from dpiped.errors import InvalidForm, InvalidInput
from dpiped.messages import Form

MISSING = "is required"
LARGEST = 512 << 10
"""Bytes of a form file."""


def convert(data: Mapping[str, Any], *, ignore_unknown: bool = False) -> Form:
    """The form. Raises InvalidForm with every field that is missing, unknown or does not fit."""
    fields = {field.name: field for field in msgspec.structs.fields(Form)}
    wrong: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            try:
                values[name] = msgspec.convert(whole(data[name]), field.type)
            except msgspec.ValidationError:
                wrong[name] = f"{takes(name)}, not {_shown(name, data[name])}"
        elif field.required:
            wrong[name] = MISSING
    if not ignore_unknown:
        wrong |= {_name(name): "is no field of the form" for name in data if name not in fields}
    if wrong:
        raise InvalidForm(tuple(wrong.items()))
    return msgspec.convert(values, Form)


def read_file(path: str) -> dict[str, Any]:
    """A form file: TOML if its name says so, else JSON. Raises InvalidInput, naming `form`."""
    import tomllib
    from pathlib import Path

    field = "form"
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.endswith(".toml") else msgspec.json.decode(text)
    except FileNotFoundError as error:
        raise InvalidInput(f"form: there is no file {path}", field=field) from error
    except OSError as error:
        raise InvalidInput(f"form: {path} can't be read: {error.strerror}", field=field) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError, RecursionError) as error:
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise InvalidInput(f"form: {path} is not {kind}: {error}", field=field) from error
    if not isinstance(data, dict):
        raise InvalidInput(f"form: {path} takes an object of fields", field=field)
    return data


def from_text(name: str, text: str) -> Any:
    """The value of a field that was written on the command line. Raises InvalidForm for an unknown field."""
    if name not in Form.__struct_fields__:
        raise InvalidForm(((_name(name), "is no field of the form"),))
    schema = _schemas()[name]
    kinds = {each.get("type") for each in schema.get("anyOf", [schema])}
    if "string" in kinds and not ("boolean" in kinds and text in ("true", "false")):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def takes(name: str) -> str:
    """What the field takes, in words."""
    schema = _schemas()[name]
    return "takes " + " or ".join(dict.fromkeys(_words(each) for each in schema.get("anyOf", [schema])))


def _schemas() -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = msgspec.json.schema(messages.Form)["$defs"]["Form"]["properties"]
    return properties


def _words(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema["type"]
    if kind in ("integer", "number"):
        above = schema.get("exclusiveMinimum")
        low = f"from {_plain(schema['minimum'])}" if above is None else f"above {_plain(above)}"
        return f"a {'whole ' * (kind == 'integer')}number {low} to {_plain(schema['maximum'])}"
    if kind == "string" and "pattern" in schema:
        return "one word of up to 200 characters"
    return {"boolean": "true or false", "string": "text", "null": "null", "array": "a list of numbers"}[kind]


def _plain(number: float) -> str:
    """Without an exponent."""
    return str(whole(number))


def whole(value: Any, depth: int = 2) -> Any:
    """The value with whole numbers as such, also in lists of lists: in JSON, 1.0 is one."""
    if isinstance(value, list):
        return [whole(each, depth - 1) for each in value] if depth else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(name: str, value: Any) -> str:
    if name == "wandb_api_key":
        return "what was given"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"


def _name(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}…"
