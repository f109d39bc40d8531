"""The real `dpipectl` with shorter times: `NAME=SECONDS` of `dpipectl.http.patience` on the command line."""

import sys

from dpipectl import __main__
from dpipectl.http import patience

while "=" in sys.argv[1]:
    name, _, seconds = sys.argv.pop(1).partition("=")
    assert isinstance(getattr(patience, name), float), name
    setattr(patience, name, float(seconds))
__main__.main()
