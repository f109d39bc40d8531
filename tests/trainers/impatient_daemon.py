"""The real daemon with shorter times: `NAME=SECONDS` of `dpiped.gpus` on the command line.

Nobody wants to wait half a minute for what is half a minute old.
"""

import sys

from dpiped import __main__, gpus

for word in sys.argv[1:]:
    name, _, seconds = word.partition("=")
    assert isinstance(getattr(gpus, name), float), name
    setattr(gpus, name, float(seconds))
del sys.argv[1:]
sys.exit(__main__.main())
