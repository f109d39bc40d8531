"""What the daemon understands of train.py's arguments, in every spelling that argparse takes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpiped import arguments
from dpiped.arguments import Arguments
from dpiped.errors import InvalidInput

CALM = settings(deadline=None)
"""A busy machine is no reason to fail."""


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ((), Arguments(())),
        (("--x", "1", "--y=2", "word"), Arguments(("--x", "1", "--y=2", "word"))),
        (("--trust",), Arguments(("--trust_cache",))),
        (("--reset_optimizer",), Arguments(("--reset_optimizer",))),
        (("--reset_opt",), Arguments(("--reset_opt",))),
        (("--resume",), Arguments((), resume=True)),
        (("--resume", "--trust_cache"), Arguments(("--trust_cache",), resume=True)),
        (("--resume_from", "a"), Arguments((), resume="a")),
        (("--resu=a", "--x"), Arguments(("--x",), resume="a")),
        (("--master=24001",), Arguments((), master_port=24001)),
        (("--cache",), Arguments(("--cache_only",), completes=False)),
        (("--dump", "d"), Arguments(("--dump_dataset", "d"), paths=(Path("d"),), completes=False)),
        (("--dump_dataset=d",), Arguments(("--dump_dataset", "d"), paths=(Path("d"),), completes=False)),
        (("--", "-", "-c"), Arguments(("--", "-", "-c"))),
    ],
)
def test_flags_are_spelled_out_and_taken_apart(args: tuple[str, ...], found: Arguments) -> None:
    assert arguments.read(args) == found


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--config", "/other.toml"), "--config"),
        (("--config=/other.toml",), "--config"),
        (("--conf", "/other.toml"), "--config"),
        (("--local_rank=1",), "--local_rank"),
        (("--master_port", "x"), "--master_port"),
        (("--dump_dataset",), "--dump_dataset"),
        (("--dump_dataset", "--x"), "--dump_dataset"),
        (("--resume=",), "--resume"),
        # A variable that was not set: the run would begin at zero.
        (("--resume_from_checkpoint", ""), "--resume"),
    ],
)
def test_what_would_train_something_else_is_refused(args: tuple[str, ...], named: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        arguments.read(args)
    assert refused.value.field == "args"
    assert named in refused.value.message


def test_a_run_that_goes_on_gets_what_was_not_meant_once() -> None:
    args = "--regenerate_cache --trust_cache --dump_dataset d --new_flag 3 --reset_optimizer".split()
    assert arguments.lasting(arguments.read(tuple(args)).words) == ("--trust_cache", "--new_flag", "3")


@CALM
@given(
    st.lists(st.sampled_from("--c --config --con --re --x= -- a --dump_d =b".split()) | st.text(max_size=5))
)
def test_any_words_are_read_or_refused_and_never_name_a_config(args: list[str]) -> None:
    try:
        found = arguments.read(tuple(args))
    except InvalidInput as refused:
        assert refused.field == "args"
        return
    assert not {"--config", "--local_rank"}.intersection(found.words)
    # Once spelled out, they read the same.
    assert arguments.read(found.words).words == found.words
