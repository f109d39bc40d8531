"""What the fuzzer checks, over its seeds and over bytes that hypothesis makes; and what it has found."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpiped import arguments, masking, redaction, tomltext
from dpiped.errors import InvalidInput
from tools import fuzz
from tools.fuzz_targets import TARGETS, log, request, toml

MARKS = st.sampled_from(
    [
        *(b"Started new epoch: ", b"Resuming at epoch: ", b", step: ", b"Checkpoint global_step"),
        *(b" is about to be saved!", b"Global batch size = ", b"exits with return code = ", b"Running eval"),
        *(
            b"Traceback (most recent call last):",
            b"Process Process-1:",
            b"\n",
            b"\r",
            b"\x1b[2K",
            b" 50%|#| 1/2 ",
        ),
        *(
            b"steps: 1",
            b"2 loss: 0.5 iter time (s): 0.1",
            b" samples/sec: 1.0\n",
            b"0",
            b"7",
            b"-",
            b"\xff",
            b"x: y",
        ),
    ]
)
CALM = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_hold(name: str) -> None:
    seeds = fuzz.seeds(name)
    assert len(seeds) >= 5
    for seed in seeds:
        TARGETS[name](seed[: fuzz.LONGEST])


@CALM
@given(st.binary(max_size=300))
def test_any_bytes_hold(data: bytes) -> None:
    for target in TARGETS.values():
        target(data)


@CALM
@given(st.lists(MARKS, max_size=60).map(b"".join), st.binary(min_size=2, max_size=2))
def test_marks_in_any_order_and_cutting_hold(data: bytes, how: bytes) -> None:
    log(how + data)


@CALM
@given(
    st.sampled_from(fuzz.seeds("request")),
    st.lists(st.tuples(st.integers(8, 400), st.integers(0, 255)), max_size=5),
)
def test_spoilt_requests_hold(seed: bytes, changes: list[tuple[int, int]]) -> None:
    spoilt = bytearray(seed)
    for at, value in changes:
        spoilt[at % len(spoilt)] = value
    request(bytes(spoilt))


@CALM
@given(
    st.sampled_from(fuzz.seeds("toml")),
    st.integers(0, 300),
    st.sampled_from(["'", '"', "#", "\n", "=", "[", "x"]),
)
def test_spoilt_configs_hold(seed: bytes, at: int, by: str) -> None:
    text = seed.decode()
    toml((text[: at % len(text)] + by + text[at % len(text) :]).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"Checkpoint global_step31 is about to be saved!\nCheckpoint global_step is about to be saved!\n",
        b"Global batch size = 4\nGlobal batch size = x\n",
        b"steps: 5 loss: 1 iter time (s): 1 samples/sec: 1\nResuming at epoch: 2, step: 3\n",
        b"steps: 1 loss: 1 iter time (s): 1 samples/sec: 1\n"
        + b"steps: 2 loss: 1 iter time (s): x samples/sec: 1\n" * 60,
        b"Global batch size = 4\nStarted new epoch: 0\n",
    ],
    ids=["checkpoint", "batch", "resume", "times", "epoch"],
)
def test_what_was_found_in_logs(data: bytes) -> None:
    """Each said something else when it came in other pieces."""
    for how in range(100):
        log(how.to_bytes(2, "big") + data)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 200_000) + " = 1",
        ".".join(["'a'"] * 200_000) + " = 1",
        "# " + "a" * 500_000,
        "# ://" + "a" * 500_000,
        "#" + " key =" * 50_000,
    ],
    ids=["key", "quoted", "word", "address", "names"],
)
def test_no_config_takes_longer_than_its_length_allows(text: str) -> None:
    """The time of the first three grew with the square: some ten minutes for each."""
    works: tuple[Callable[[str], object], ...] = (tomltext.loads, redaction.hide, masking.mask)
    began = time.process_time()
    for work in works:
        try:
            work(text)
        except ValueError as error:
            assert "dots" in str(error)
    assert time.process_time() - began < 5


def test_a_port_of_many_digits_is_an_error_that_names_the_field() -> None:
    with pytest.raises(InvalidInput) as refused:
        arguments.read((f"--master_port={'1' * 5000}",))
    assert refused.value.field == arguments.FIELD and len(refused.value.message) < 300
