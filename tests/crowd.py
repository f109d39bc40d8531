"""Many clients in one process, each a connection of its own: each asks for the status, a log and a change.

Run as `python -m tests.crowd SOCKET COUNT RUN`; prints as JSON how long it took until all were answered, and
the longest that one waited for the status.
"""

import json
import resource
import sys
import time

import msgspec
import zmq

from dpiped import messages

WAIT = 2.0
DEADLINE = 60.0


def main() -> None:
    path, count, run = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    context, poller = zmq.Context(), zmq.Poller()
    context.set(zmq.MAX_SOCKETS, 4096)
    asked = (
        messages.GetStatus(),
        messages.ReadLog(run, limit=100),
        messages.Watch(after=1 << 40, wait=0.0),
        messages.WaitRun(run, wait=WAIT),
    )
    begun = time.monotonic()
    for _ in range(count):
        each = context.socket(zmq.DEALER)
        each.connect(f"ipc://{path}")
        for number, request in enumerate(asked):
            each.send_multipart([bytes([number]), messages.encode(request)])
        poller.register(each, zmq.POLLIN)
    left, kinds, slowest = count * len(asked), dict[str, int](), 0.0
    while left and time.monotonic() - begun < DEADLINE:
        for each, _ in poller.poll(1000):
            number, body = each.recv_multipart()
            reply = msgspec.msgpack.decode(body)
            kinds[reply["type"]] = kinds.get(reply["type"], 0) + 1
            left -= 1
            if number == b"\0":
                slowest = time.monotonic() - begun
    print(json.dumps({"left": left, "kinds": kinds, "seconds": time.monotonic() - begun, "status": slowest}))
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
