"""Stands where `deepspeed` stands, and dies; what it has left behind makes itself a daemon, again and again.

For a second each process lives only until it has forked the next one; the last one stays.
"""

import os
import time

until = time.monotonic() + 1
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
time.sleep(600)
