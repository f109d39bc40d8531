"""The real daemon, whose wall clock is wrong by what the file named first on the command line says (seconds).

Setting the machine's clock would set it for everybody.
"""

import sys
import time
from pathlib import Path

from dpiped import __main__

wrong_by = Path(sys.argv.pop(1))
right = time.time


def wrong() -> float:
    try:
        return right() + float(wrong_by.read_text() or 0)
    except FileNotFoundError:
        return right()


time.time = wrong
sys.exit(__main__.main())
