"""A config without the secrets that may stand in it, to be shown to whoever asks.

Why: dpiped takes the one key out of a config that it knows (redaction.py). A plain config may have others: a
token for a model hub, a password in an address, a key in a comment. The run's files keep them, since train.py
needs them; what is shown over HTTP does not.

A value is secret if its key, or the key of a table or list that it stands in, is named like one
(`settings.is_secret`). It is replaced where it stands, so that the text keeps its form. Where that does not
give what it has to, the text is written anew from its values.

Known gap: a secret under a name that says nothing of it is shown, and so is a number. In a comment, what
follows such a name, and what looks like a key of Weights & Biases or a token of Hugging Face, is hidden;
nothing else.
"""

import re
from typing import Any

import tomli_w

from dpiped import oldtoml, tomltext
from dpiped.redaction import HIDDEN
from dpiped.settings import is_secret

WRITTEN_ANEW = "# Written anew without its comments: a secret could not be hidden where it stood.\n"
_STRING = r""""{3}(?:\\[\s\S]|[^\\])*?"{3,5}|'{3}[\s\S]*?'{3,5}|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+'"""
_PARTS = re.compile(
    rf"""(?P<comment>\#[^\n]*+)
    |(?<![\w-])(?P<name>[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')
        (?P<equals>[ \t]*+=[ \t]*+)(?P<value>{_STRING})
    |{_STRING}""",
    re.VERBOSE,
)
_SAID = re.compile(
    r"""(?<![\w-])(?P<before>(?P<name>[\w-]++)["']?[ \t]*+[=:][ \t]*+["']*+)(?P<value>[^\s"'][^\n"']*+)"""
)
_LOOKS_SECRET = re.compile(r"(?<!\w)(?:[0-9a-fA-F]{40}|wandb_v\d_\w{20,}|hf_\w{20,})(?!\w)")
_ADDRESS = re.compile(r"""(?<=://)[^\s/?\#"'<>]+(?=@)""")


def mask(text: str) -> str:
    """The same TOML without its secrets. Raises ValueError for what is no TOML."""
    hidden = _PARTS.sub(_part, text)
    wanted = masked(tomltext.loads(text))
    return hidden if oldtoml.says(hidden, wanted) else WRITTEN_ANEW + tomli_w.dumps(wanted)


def masked(value: Any, secret: bool = False) -> Any:
    """The same for what a TOML says. An empty text hides nothing."""
    if isinstance(value, dict):
        return {name: masked(inner, secret or is_secret(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, secret) for inner in value]
    if isinstance(value, str):
        return HIDDEN if secret and value else _without_password(value)
    return value


def _part(found: re.Match[str]) -> str:
    if found["comment"] is not None:
        said = _SAID.sub(_said, found["comment"])
        return _without_password(_LOOKS_SECRET.sub(HIDDEN, said))
    if found["name"] is None or not is_secret(found["name"]):
        return _without_password(found.group())
    value = found["value"]
    if len(value) == 2 or value in ('""""""', "''''''"):
        return found.group()
    return f'{found["name"]}{found["equals"]}"{HIDDEN}"'


def _said(found: re.Match[str]) -> str:
    return found["before"] + HIDDEN if is_secret(found["name"]) else found.group()


def _without_password(text: str) -> str:
    return _ADDRESS.sub(HIDDEN, text)
