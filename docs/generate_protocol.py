"""Writes docs/protocol.md from the message types, so that the document can't disagree with the code.

Run it as `python docs/generate_protocol.py`; a test compares its output with the file.
"""

import inspect
import typing
from pathlib import Path
from types import UnionType

import msgspec
from msgspec import NODEFAULT
from msgspec.inspect import type_info

from dpiped import messages

TARGET = Path(__file__).with_name("protocol.md")
HEAD = f"""\
# The protocol

Generated from `dpiped/messages.py` by `docs/generate_protocol.py`; do not edit.

The daemon is a ZeroMQ ROUTER on a Unix socket (`DIFFPIPE_SOCKET`); a client is a DEALER. A message is two
frames: a request number of at most 16 bytes, which comes back with the reply, and a MessagePack map with the
field `type`. Requests refuse unknown fields, replies may gain some. Every failure is a reply of type `error`.
Protocol number: {messages.PROTOCOL}. Largest request: {messages.REQUEST_BYTES} bytes. Longest `wait`:
{messages.LONGEST_WAIT:g} seconds. Times are Unix times or seconds, sizes are bytes.

Following is a long poll: `log` is answered as soon as the log is longer than `seen`; the cursor `next` is a
byte offset in the run's `output.log` and stays valid when the daemon is restarted.

Error codes: `invalid`, `invalid_form` (`fields` names each), `unknown_run`, `bad_request`, `refused`, `busy`,
`not_installed`, `launch_failed`, `run_damaged`, `internal`.
"""


def render() -> str:
    """The whole document."""
    parts = [HEAD, "## Requests\n"]
    parts += [_struct(kind) for kind in typing.get_args(messages.AnyRequest)]
    parts.append("## Replies\n")
    parts += [_struct(kind) for kind in typing.get_args(messages.AnyReply)]
    parts.append("## Parts of replies\n")
    nested = (
        messages.ActiveRun,
        messages.LastRun,
        messages.TensorBoard,
        messages.Gpu,
        messages.RunSummary,
        messages.Failure,
        messages.Difference,
        messages.FieldError,
        messages.MissingPath,
        messages.Form,
    )
    parts += [_struct(kind) for kind in nested]
    return "\n".join(parts)


def _struct(kind: type[msgspec.Struct]) -> str:
    tag = kind.__struct_config__.tag
    lines = [f"### `{tag}` ({kind.__name__})" if tag else f"### {kind.__name__}", ""]
    lines += [inspect.cleandoc(kind.__doc__ or ""), ""]
    fields = msgspec.structs.fields(kind)
    if fields:
        lines += ["| field | type | default |", "|---|---|---|"]
        lines += [f"| `{field.encode_name}` | {_type(field.type)} | {_default(field)} |" for field in fields]
        lines.append("")
    return "\n".join(lines)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not NODEFAULT:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is NODEFAULT else f"`{field.default_factory()!r}`"


def _type(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        base, *limits = typing.get_args(annotation)
        return f"{_type(base)} {' '.join(_limit(limit) for limit in limits)}"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if isinstance(annotation, UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(_type(part) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        key, value = typing.get_args(annotation)
        return f"map of {_type(key)} to {_type(value)}"
    type_info(annotation)
    return getattr(annotation, "__name__", str(annotation))


def _limit(limit: msgspec.Meta) -> str:
    names = {"ge": "≥", "le": "≤", "min_length": "length ≥", "max_length": "length ≤", "pattern": "like"}
    found = ((sign, getattr(limit, name)) for name, sign in names.items())
    return "(" + ", ".join(f"{sign} {value}" for sign, value in found if value is not None) + ")"


if __name__ == "__main__":
    TARGET.write_text(render())
