"""Fuzzing of the daemon's parsers with atheris: `make fuzz`, or `python -m tools.fuzz NAME --seconds N`.

Why: whoever writes a config, a log line or a message may write anything. A fuzzer that sees which branches
its inputs reach finds the orders of bytes that nobody thinks of, property tests included.

Inputs that reach something new are kept in `.fuzz/NAME` and are what the next run begins with, beside the
seeds made of tests/data. One that breaks something is written to `.fuzz/NAME-crash-…`; put its cause into a
test.

Known gap: msgspec is compiled, so of the decoder only what our code makes of it is seen.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".fuzz"
LONGEST = 1 << 13
"""Bytes of an input."""
SLOWEST = 10
"""Seconds that one input may take."""
MEMORY = 1024
"""MiB of the whole process."""
LOGS = (ROOT / "tests/data/logs", ROOT.parent / "shared/data/diffusion-pipe-logs")
REPORT = ("stat::number_of_executed_units", "stat::peak_rss_mb", "stat::slowest_unit_time_sec")


def seeds(name: str) -> list[bytes]:
    """What the fuzzer begins with."""
    made = {"request": _requests, "log": _logs, "pages": _logs, "toml": _tomls}
    return made[name]()


def _logs() -> list[bytes]:
    found = [path.read_bytes() for folder in LOGS for path in sorted(folder.glob("*.log"))]
    halves = [text[at : at + 4000] for text in found for at in (0, len(text) // 2, max(len(text) - 4000, 0))]
    return [b"\x01\x02" + text for text in (*found, *halves) if len(text) < LONGEST]


def _requests() -> list[bytes]:
    """One of each kind, with all its fields where they have defaults."""
    from typing import get_args

    import msgspec

    from dpiped import messages
    from dpiped.form import Form

    paths = "dataset_path config_dir output_dir transformer_path vae_path llm_path clip_path".split()
    form = msgspec.to_builtins(msgspec.convert(dict.fromkeys(paths, "a/b"), Form))
    given = {"config": "/w/c.toml", "run": "last", "form": form, "text": "loss", "args": ["--cache_only"]}
    found = []
    for kind in get_args(messages.AnyRequest):
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        body = {"type": kind.__struct_config__.tag}
        body |= {name: given[name] for name in fields if name in given}
        for content in (body, body | {"typo": 1}, body | {"num_gpus": 0, "env": {"A": "b"}}):
            found.append(b"\0\0\0\0\0\0\0\1" + msgspec.msgpack.encode(content))
    return found


def _tomls() -> list[bytes]:
    from tools.fuzz_targets import KEY

    texts = [
        f'a = 1\n[monitoring]\nenable_wandb = true\nwandb_api_key = "{KEY}" # mine\n',
        f"[monitoring]\nwandb_api_key='''{KEY}'''\n# wandb_api_key = \"{KEY[::-1]}\"\n",
        "hf_token = 'a'\n[x.secret]\ny = ['b', \"c\"]\nurl = 'https://me:pw@host/p' # password: z\n",
        'output_dir = "/w/o"\nepochs = 3\n[[directory]]\npath = "/w/p"\nz = {a = "\\u00e9"}\n',
        'a.b.c = """x\n\\"y"""\nd = [1, 2.5, nan, 1979-05-27T07:32:00Z]\n[[e]]\n[[e]]\nf = 0xff\n',
    ]
    return [text.encode() for text in texts]


def main() -> int:
    from_targets = ("request", "log", "pages", "toml")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=from_targets, help="one target, in this process")
    parser.add_argument("--seconds", type=int, default=600, help="split over the targets (default: 600)")
    options = parser.parse_args()
    if options.name:
        return _fuzz(options.name, options.seconds)
    share = max(options.seconds // len(from_targets), 1)
    return max(_report(name, share) for name in from_targets)


def _report(name: str, seconds: int) -> int:
    """Runs one target as a process of its own, and says in a line what came of it."""
    command = [sys.executable, "-m", "tools.fuzz", name, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace")
    figures = [f"{key.removeprefix('stat::')} {value}" for key in REPORT for value in _stat(said, key)]
    reached = re.findall(r"cov: (\d+) ft: (\d+)", said)
    cover = f"edges {reached[-1][0]}, features {reached[-1][1]}" if reached else "nothing reached"
    print(f"{name}: {', '.join([*figures, cover])}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    if done.returncode:
        print(said[-6000:], file=sys.stderr, flush=True)
    return done.returncode


def _stat(said: str, key: str) -> list[str]:
    return re.findall(rf"{key}: +(\d+)", said)


def _fuzz(name: str, seconds: int) -> int:
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install -c constraints.txt '.[fuzz]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["dpiped", "tomllib"]):
        from tools import fuzz_targets
    corpus, made = KEPT / name, KEPT / f"{name}-seeds"
    for folder in (corpus, made):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (made / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY}"]
    limits += [f"-max_len={LONGEST}", "-reload=0"]
    where = [f"-artifact_prefix={KEPT}/{name}-", "-print_final_stats=1", str(corpus), str(made)]
    atheris.Setup([sys.argv[0], *limits, *where], fuzz_targets.TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
