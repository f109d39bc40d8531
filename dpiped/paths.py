"""Which paths a request may name.

Why: the daemon often runs as root and starts what a web page asks for. A path is looked at where it
really leads (`..` and symlinks resolved) and must lie below an allowed root; a sibling that shares a
root's prefix does not. What is said of a refused one may go to a browser: the path as it was given, and
in the hint, which does not go there, where it leads and what is allowed.

What is exchanged after the check is refused where it is opened here (`beneath.py`).

Known gap: a path may be exchanged between this check and train.py's use of it.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dpiped.errors import InvalidInput

LONGEST = 4096
SHOWN = 300
"""Characters of a path in an error."""


def confine(
    text: str, field: str, roots: Sequence[Path], base: Path | None = None, shown: str | None = None
) -> Path:
    """The resolved path. Relative ones are taken from `base`. Raises InvalidInput, naming `field`.

    `shown` stands for `text` in errors.
    """
    shown = ascii(text if shown is None else shown)[:SHOWN]
    if not text.strip():
        raise InvalidInput(f"{field} is empty; it takes a path", field=field)
    if "\0" in text or len(text.encode(errors="surrogatepass")) > LONGEST:
        raise InvalidInput(f"{field} takes a path of at most {LONGEST} bytes without NUL", field=field)
    path = Path(text)
    if not path.is_absolute():
        if base is None:
            raise InvalidInput(f"{field} takes an absolute path, not {shown}", field=field)
        path = base / path
    try:
        resolved = path.resolve()
        str(resolved).encode()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            resolved.lstat()
        allowed = any(resolved.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it leads in a circle or is not UTF-8"
        raise InvalidInput(f"{field}: {shown} can't be used: {why}", field=field) from error
    if not allowed:
        raise InvalidInput(
            f"{field}: {shown} lies outside the allowed roots; it takes a path below them",
            field=field,
            hint=f"it leads to {resolved}; allowed is what lies below {', '.join(map(str, roots))} "
            "(DIFFPIPE_ALLOWED_ROOTS of the daemon replaces the roots of models and configs)",
        )
    return resolved
