"""One line in one write.

Why: the ranks share the launcher's stdout and run unbuffered, where `print` writes a line and its end
separately; two ranks that print at once would then run their lines together.

Known gap: DeepSpeed's own prints, such as the step line, come from rank 0 only and don't need it.
"""

import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Writes `text` and a line end to stdout, or to `stream`."""
    out = sys.stdout if stream is None else stream
    out.write(f"{text}\n")
    out.flush()
