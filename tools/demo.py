"""`make demo`: from nothing to a trained little diffusion model, watched live, then looked at.

It is what a user would type: write the example data set, start the daemon, `dpipectl start --follow`,
ask TensorBoard for the curve, stop the daemon. It checks what it promises and fails if it does not hold.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo").resolve()
"""Everything that the demo makes; removed at its start."""
BIN = Path(sys.executable).parent
SETTINGS = ("DIFFPIPE_", "NUM_GPUS", "TENSORBOARD_", "TRAINPILOT_", "KOHYA_", "AI_TOOLKIT_")
"""The user's own daemon may be set up by these; the demo's is not."""
LEAST_COLOUR = 0.8
STEP = re.compile(r"steps: \d+ loss: (\S+) ")


def main() -> int:
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    env = environment()
    say("writing the example data set")
    command = [sys.executable, "-m", "dpiped.trainer", "example", str(ROOT / "example")]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    say("starting the daemon")
    with (ROOT / "dpiped.log").open("wb") as log:
        daemon = subprocess.Popen([str(BIN / "dpiped")], env=env, stdout=log, stderr=log)
    try:
        until_it_answers(env, daemon)
        return train_and_look(env)
    except KeyboardInterrupt:
        say("interrupted; stopping the training")
        return 130
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
        shutil.rmtree(Path(env["DIFFPIPE_SOCKET"]).parent, ignore_errors=True)


def environment() -> dict[str, str]:
    """A workspace below .demo; a socket path short enough for AF_UNIX; TensorBoard on a free port."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    env |= {
        "WORKSPACE_ROOT": str(ROOT),
        "DIFFPIPE_SOCKET": str(Path(tempfile.mkdtemp(prefix="dpiped-demo-")) / "dpiped.sock"),
        "DIFFPIPE_ALLOWED_ROOTS": str(ROOT),
        "DIFFPIPE_PORT": str(port()),
        "DEEPSPEED_BIN": str(BIN / "deepspeed"),
    }
    if shutil.which("nvidia-smi") is None:
        env.setdefault("DS_ACCELERATOR", "cpu")
    return env


def port() -> int:
    """4444, or a free one if somebody has it."""
    for wanted in (4444, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    sys.exit("demo: there is no free TCP port on 127.0.0.1")


def train_and_look(env: dict[str, str]) -> int:
    say(f"training; in another terminal:  export DIFFPIPE_SOCKET={env['DIFFPIPE_SOCKET']}")
    say(f"                               {BIN / 'dpipectl'} status   (or logs -f)")
    config = ROOT / "example" / "training.toml"
    command = [str(BIN / "dpipectl"), "start", "--config", str(config), "--follow"]
    followed = subprocess.run(command, env=env, check=False)
    last = ctl(env, "status")["last_run"]
    if followed.returncode != 0 or last["outcome"] != "completed":
        say(f"the run did not complete: {last}")
        return 1
    return look_at(env, last["id"])


def look_at(env: dict[str, str], name: str) -> int:
    """Loss, TensorBoard, samples. Exit code 1 if one of them is not what it should be."""
    first, final = losses(ctl(env, "logs", name, "--all")["lines"])
    train_dir = Path(ctl(env, "show", name)["train_dir"])
    samples = sorted((train_dir / "samples").glob("*.png"))
    listed = wait_for_curve(env, name)
    say(f"loss: {first:.4f} in the first tenth, {final:.4f} in the last ({final / first:.0%})")
    say(f"TensorBoard listed the run as diffpipe/{name}" if listed else "TensorBoard did not list the run")
    say(f"samples: {len(samples)} pictures, the last is {samples[-1]}" if samples else "there are no samples")
    colour, _, both = judged(train_dir)
    say(f"of new pictures {colour:.0%} have the colour of their caption, {both:.0%} the colour and the shape")
    say("to look again:")
    say(f"  {BIN / 'tensorboard'} --logdir {env['WORKSPACE_ROOT']}/logs/tensorboard")
    return 0 if final <= first / 2 and listed and samples and colour >= LEAST_COLOUR else 1


def judged(train_dir: Path) -> tuple[float, float, float]:
    """Of pictures drawn for captions from all over the example: right colour, right shape, both."""
    from tools import quality  # imports torch

    return quality.drawn(train_dir, quality.some_captions(lambda *_: True, 48))[1]


def losses(lines: list[str]) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    found = [float(match[1]) for line in lines if (match := STEP.search(line))]
    tenth = max(len(found) // 10, 1)
    return sum(found[:tenth]) / tenth, sum(found[-tenth:]) / tenth


def wait_for_curve(env: dict[str, str], name: str) -> bool:
    """Does TensorBoard's HTTP API show the run with its train/loss? It reads new files every 5 seconds."""
    until = time.monotonic() + 40
    while time.monotonic() < until:
        board = ctl(env, "status")["tensorboard"]
        if board["state"] == "ready":
            url = urllib.parse.urljoin(board["url"], "data/plugin/scalars/tags")
            # A proxy of the machine has nothing to do with its loopback.
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(url, timeout=10) as answer:
                if "train/loss" in json.load(answer).get(f"diffpipe/{name}", {}):
                    say(f"TensorBoard: {board['url']}")
                    return True
        time.sleep(0.5)
    return False


def until_it_answers(env: dict[str, str], daemon: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    asking = [str(BIN / "dpipectl"), "status"]
    while subprocess.run(asking, env=env, capture_output=True, check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > until:
            sys.exit((ROOT / "dpiped.log").read_text())
        time.sleep(0.1)


def ctl(env: dict[str, str], *words: str) -> Any:
    done = subprocess.run([str(BIN / "dpipectl"), "--json", *words], env=env, capture_output=True, check=True)
    return json.loads(done.stdout)


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
