"""Which paths a request may name.

Why: the daemon often runs as root and starts what a web page asks for. A path is looked at where it
really leads (`..` and symlinks resolved) and must lie below an allowed root; a sibling that shares a
root's prefix does not.

Known gap: a path may be exchanged between this check and train.py's use of it.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dpiped.errors import InvalidInput

LONGEST = 4096


def confine(text: str, field: str, roots: Sequence[Path], base: Path | None = None) -> Path:
    """The resolved path. Relative ones are taken from `base`. Raises InvalidInput, naming `field`."""
    if not text.strip():
        raise InvalidInput(f"{field} is empty; it takes a path", field=field)
    if "\0" in text or len(text.encode(errors="surrogatepass")) > LONGEST:
        raise InvalidInput(f"{field} takes a path of at most {LONGEST} bytes without NUL", field=field)
    path = Path(text)
    if not path.is_absolute():
        if base is None:
            raise InvalidInput(f"{field} takes an absolute path, not {text!r}", field=field)
        path = base / path
    try:
        resolved = path.resolve()
        str(resolved).encode()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            resolved.lstat()
        allowed = any(resolved.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"{field}: {str(path)!a:.300} can't be used: {error}", field=field) from error
    if not allowed:
        raise InvalidInput(
            f"{field}: {resolved} lies outside the allowed roots ({', '.join(map(str, roots))})",
            field=field,
            hint="move it below one of them, or set DIFFPIPE_ALLOWED_ROOTS for the daemon",
        )
    return resolved
