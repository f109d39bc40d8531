"""From a request to the exact command: train.py, launcher, ports, resume, environment."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

import dpiped
from dpiped import configs, launch
from dpiped.errors import InvalidInput, NotInstalled
from dpiped.launch import Plan
from dpiped.rundir import Spec
from dpiped.settings import RUN_MARKER, Settings, load
from dpiped.sources import Wanted
from tests.test_checkpoints import make_checkpoint, no_model_states


class Machine:
    """A workspace with train.py, a launcher, a data set and a config."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.app = root / "apps/diffusion-pipe"
        self.repo = root / "repos/diffusion-pipe"
        for folder in (self.app, self.repo, root / "images", root / "bin"):
            folder.mkdir(parents=True)
        (self.app / "train.py").touch()
        (root / "images/picture.png").touch()
        self.launcher = root / "bin/deepspeed"
        self.launcher.write_text("#!/bin/sh\n")
        self.launcher.chmod(0o755)
        self.out = root / "out"
        self.dataset = root / "dataset.toml"
        self.dataset.write_text(f"[[directory]]\npath = '{root}/images'\n")
        self.config = self.write_config("train.toml")
        self.settings = load(
            {
                "WORKSPACE_ROOT": str(root),
                "DIFFPIPE_REPO_DIR": str(self.repo),
                "DEEPSPEED_BIN": str(self.launcher),
                "DIFFPIPE_SOCKET": str(root / "s"),
                "DIFFPIPE_ALLOWED_ROOTS": str(root),
            }
        )

    def write_config(self, name: str, more: str = "", kind: str = "flux") -> Path:
        path = self.root / name
        path.write_text(
            f"output_dir = '{self.out}'\ndataset = '{self.dataset}'\nepochs = 3\nsave_every_n_epochs = 1\n"
            f"{more}\n[model]\ntype = '{kind}'\n[optimizer]\ntype = 'adamw'\n"
        )
        return path

    def set(self, **changes: object) -> Settings:
        self.settings = msgspec.structs.replace(self.settings, **changes)
        return self.settings

    def plan(self, *args: str, wanted: Wanted | None = None, more: str | None = None) -> Plan:
        config = self.config if more is None else self.write_config("more.toml", more)
        return launch.make(self.settings, wanted or Wanted(config, args=args))

    def resumed_from(self, *args: str, more: str | None = None) -> str | None:
        """The folder's name that train.py is told to resume from, which must always be given."""
        plan = self.plan(*args, more=more)
        words = plan.spec.argv
        assert [word for word in words if word.startswith("--resume")] in ([], ["--resume_from_checkpoint"])
        if "--resume_from_checkpoint" not in words:
            assert plan.spec.train_dir is None
            return None
        name = words[words.index("--resume_from_checkpoint") + 1]
        assert plan.spec.train_dir == str(self.out / name)
        return name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


def refusal(what: Callable[[], object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        what()
    return refused.value


def test_the_command_is_exact(machine: Machine) -> None:
    plan = machine.plan("--regenerate_cache", "--trust_cache", wanted=None)
    port = str(plan.spec.master_port)
    assert plan.spec.argv == (
        str(machine.launcher),
        "--num_gpus=1",
        f"--master_port={port}",
        "train.py",
        "--deepspeed",
        "--config",
        str(plan.run_dir / "training_config.toml"),
        "--master_port",
        port,
        "--regenerate_cache",
        "--trust_cache",
    )
    assert int(port) in launch.PORTS
    assert plan.spec.cwd == str(machine.app)
    assert plan.run_dir == machine.root / "diffpipe/runs" / plan.spec.run
    assert not plan.run_dir.exists(), "nothing is written yet"


def test_the_command_of_a_resumed_run_is_exact(machine: Machine) -> None:
    make_checkpoint(machine.out / "20260101_00-00-00")
    wanted = Wanted(machine.config, num_gpus=4, args=("--x",), resume=machine.out / "20260101_00-00-00")
    plan = machine.plan(wanted=wanted)
    assert plan.spec.argv[1] == "--num_gpus=4"
    assert plan.spec.argv[7:] == (
        "--master_port",
        str(plan.spec.master_port),
        "--resume_from_checkpoint",
        "20260101_00-00-00",
        "--x",
    )


def test_the_spec_tells_what_the_run_is(machine: Machine) -> None:
    machine.set(num_gpus=2)
    wanted = Wanted(machine.config, service=True)
    spec = machine.plan(wanted=wanted, more=None).spec
    assert spec.argv[1] == "--num_gpus=2"
    assert (spec.source, spec.output_dir) == (str(machine.config), str(machine.out))
    assert (spec.epochs, spec.max_steps, spec.completes, spec.service) == (3, None, True, True)
    assert (spec.resumed_from, spec.train_dir) == (None, None)


def test_run_ids_differ_and_sort_by_time(machine: Machine) -> None:
    runs = {machine.plan().spec.run for _ in range(20)}
    assert len(runs) == 20
    assert all(run[8] == run[15] == "-" and run[:8].isdecimal() and run[9:15].isdecimal() for run in runs)


@pytest.mark.parametrize("args", [("--master_port", "24001"), ("--master_port=24001",)])
def test_the_port_of_the_user_is_respected(machine: Machine, args: tuple[str, ...]) -> None:
    spec = machine.plan("--a", *args, "--b").spec
    assert spec.master_port == 24001
    assert spec.argv[2] == "--master_port=24001"
    assert spec.argv[7:] == ("--master_port", "24001", "--a", "--b")


@pytest.mark.parametrize(
    "args", [("--master_port",), ("--master_port", "x"), ("--master_port=0",), ("--master_port", "65536")]
)
def test_a_port_that_is_none_is_refused(machine: Machine, args: tuple[str, ...]) -> None:
    refused = refusal(lambda: machine.plan(*args))
    assert refused.field == "args"
    assert "--master_port" in refused.message


@pytest.mark.parametrize(
    ("args", "more", "name"),
    [
        ((), "", None),
        (("--resume_from_checkpoint",), "", "b-newest"),
        (("--resume_from_checkpoint", "--x"), "", "b-newest"),
        (("--x", "--resume_from_checkpoint"), "", "b-newest"),
        (("--resume_from_checkpoint", "a-old"), "", "a-old"),
        (("--resume_from_checkpoint=a-old",), "", "a-old"),
        ((), "resume_from_checkpoint = true", "b-newest"),
        ((), "resume_from_checkpoint = false", None),
        ((), "resume_from_checkpoint = 'a-old'", "a-old"),
        (("--resume_from_checkpoint", "a-old"), "resume_from_checkpoint = true", "a-old"),
        (("--resume_from_checkpoint",), "resume_from_checkpoint = 'a-old'", "b-newest"),
    ],
)
def test_every_way_to_resume_ends_in_an_explicit_folder(
    machine: Machine, args: tuple[str, ...], more: str, name: str | None
) -> None:
    make_checkpoint(machine.out / "a-old", at=1000.0)
    make_checkpoint(machine.out / "b-newest", at=2000.0)
    no_model_states(make_checkpoint(machine.out / "c-broken", at=3000.0))
    (machine.out / "zz-stray.txt").touch()
    (machine.out / "zz-stray").mkdir()
    assert machine.resumed_from(*args, more=more) == name


@pytest.mark.parametrize("name", ["missing", "broken", "../elsewhere", ".", "sub/whole", "file"])
def test_a_folder_that_cannot_be_resumed_is_refused(machine: Machine, name: str) -> None:
    make_checkpoint(machine.out / "whole")
    make_checkpoint(machine.out / "sub/whole")
    make_checkpoint(machine.root / "elsewhere")
    no_model_states(make_checkpoint(machine.out / "broken"))
    (machine.out / "file").touch()
    for args in (("--resume_from_checkpoint", name), (f"--resume_from_checkpoint={name}",)):
        assert refusal(partial(machine.plan, *args)).field == "resume_from_checkpoint"
    assert not (machine.out / "missing").exists()


def test_an_empty_folder_name_is_not_a_fresh_start(machine: Machine) -> None:
    make_checkpoint(machine.out / "whole")
    refused = refusal(lambda: machine.plan("--resume_from_checkpoint="))
    assert refused.field == "args" and "--resume_from_checkpoint= takes a value" in refused.message


def test_resuming_the_newest_of_none_is_refused(machine: Machine) -> None:
    refused = refusal(lambda: machine.plan("--resume_from_checkpoint"))
    assert refused.field == "resume_from_checkpoint"
    assert str(machine.out) in (refused.hint or "") and str(machine.out) not in refused.message


def test_a_run_that_goes_on_with_its_own_snapshot_counts_as_the_same_config(machine: Machine) -> None:
    first = machine.plan()
    first.run_dir.mkdir(parents=True)
    for name, data in first.files.items():
        (first.run_dir / name).write_bytes(data)
    make_checkpoint(machine.out / "r")
    own = Wanted(first.run_dir / "training_config.toml", resume=machine.out / "r", origin=first.spec)
    again = machine.plan(wanted=own)
    assert again.spec.resumed_from == first.spec.run
    assert (again.spec.source, again.spec.digest) == (first.spec.source, first.spec.digest)
    text = again.files["training_config.toml"].decode()
    assert text.startswith(f"{configs.MARK}{again.spec.run}\noutput_dir")
    assert text.count(configs.MARK) == 1
    other = Wanted(machine.write_config("longer.toml"), resume=machine.out / "r", origin=first.spec)
    assert machine.plan(wanted=other).spec.source == str(machine.root / "longer.toml")


def test_a_run_can_be_resumed_though_its_records_lie_outside_the_allowed_roots(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine.set(state_dir=tmp_path_factory.mktemp("var") / "dpiped")
    first = machine.plan()
    first.run_dir.mkdir(parents=True)
    for name, data in first.files.items():
        (first.run_dir / name).write_bytes(data)
    make_checkpoint(machine.out / "r")
    own = Wanted(first.run_dir / "training_config.toml", resume=machine.out / "r", origin=first.spec)
    assert machine.plan(wanted=own).spec.resumed_from == first.spec.run


def test_train_py_is_taken_from_the_first_folder_that_has_one(machine: Machine) -> None:
    (machine.repo / "train.py").touch()
    assert machine.plan().spec.cwd == str(machine.app)
    (machine.app / "train.py").unlink()
    assert machine.plan().spec.cwd == str(machine.repo)
    (machine.repo / "train.py").unlink()
    with pytest.raises(NotInstalled) as missing:
        machine.plan()
    assert missing.value.field == "DIFFPIPE_APP_DIR"
    hint = missing.value.hint or ""
    assert str(machine.app) in hint and str(machine.repo) in hint


def test_the_embedded_trainer_needs_no_installation(machine: Machine) -> None:
    (machine.app / "train.py").unlink()
    spec = machine.plan(wanted=Wanted(machine.write_config("own.toml", kind="dpiped"))).spec
    assert spec.cwd == str(Path(dpiped.__file__).parent / "trainer")
    assert spec.argv[3] == "train.py"


@pytest.mark.parametrize("missing", ["no-such-program-anywhere", "/no/such/deepspeed"])
def test_a_missing_launcher_names_its_variable(machine: Machine, missing: str) -> None:
    machine.set(deepspeed_bin=missing)
    with pytest.raises(NotInstalled) as refused:
        machine.plan()
    assert refused.value.field == "DEEPSPEED_BIN"
    assert missing in (refused.value.hint or "")


def test_a_launcher_that_is_not_executable_is_none(machine: Machine) -> None:
    machine.launcher.chmod(0o644)
    with pytest.raises(NotInstalled):
        machine.plan()


def test_a_config_outside_the_roots_is_refused_unread(machine: Machine) -> None:
    for path in (Path("/etc/passwd"), machine.root / "../train.toml"):
        assert refusal(partial(machine.plan, wanted=Wanted(path))).field == "config"


def test_the_stages_must_divide_the_gpus(machine: Machine) -> None:
    config = machine.write_config("staged.toml", "pipeline_stages = 2")
    assert refusal(lambda: machine.plan(wanted=Wanted(config, num_gpus=3))).field == "pipeline_stages"
    assert machine.plan(wanted=Wanted(config, num_gpus=4)).spec.argv[1] == "--num_gpus=4"


@pytest.mark.parametrize(
    ("args", "completes"),
    [
        ((), True),
        (("--regenerate_cache",), True),
        (("--cache_only",), False),
        (("--test_sample",), False),
        (("--dump_dataset", "d"), False),
        (("--dump_dataset=d",), False),
        (("--cache",), False),
    ],
)
def test_flags_with_which_no_completion_is_printed(
    machine: Machine, args: tuple[str, ...], completes: bool
) -> None:
    assert machine.plan(*args).spec.completes is completes


def test_secrets_are_hidden_in_the_record_but_given_to_the_training(machine: Machine) -> None:
    env = {
        "WANDB_API_KEY": "k1",
        "HF_TOKEN": "k2",
        "my_secret": "k3",
        "DB_PASSWORD": "k4",
        "AWS_CREDENTIALS": "k5",
        "https_proxy": "http://me:k6@proxy:3128",
        "MIRROR": "https://k7@host/models",
    }
    shown = {
        "NCCL_DEBUG": "INFO",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_TOKEN": "",
        "http_proxy": "http://proxy:3128",
        "GIT": "ssh://git@host/a:b@c",
    }
    plan = machine.plan(wanted=Wanted(machine.config, env=env | shown))
    assert plan.spec.env == dict.fromkeys(env, "hidden-by-dpiped") | shown
    assert {name: plan.environment[name] for name in env} == env
    written = msgspec.json.encode(plan.spec) + b"".join(plan.files.values())
    assert not [secret for secret in ("k1", "k2", "k3", "k4", "k5", "k6", "k7") if secret.encode() in written]


def test_the_environment_is_marked_and_finds_the_launchers_python(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/daemon")
    monkeypatch.setenv("PATH", "/usr/bin")
    plan = machine.plan(wanted=Wanted(machine.config, env={"NCCL_P2P_DISABLE": "0", RUN_MARKER: "other"}))
    assert plan.environment[RUN_MARKER] == plan.spec.run
    assert plan.environment["PATH"] == f"{machine.launcher.parent}{os.pathsep}/usr/bin"
    assert plan.environment["NCCL_P2P_DISABLE"] == "0"
    assert plan.environment["NCCL_IB_DISABLE"] == "1"
    assert "PYTHONPATH" not in plan.environment


def test_a_spec_survives_being_written(machine: Machine) -> None:
    spec = machine.plan("--x").spec
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


@pytest.mark.parametrize(
    ("visible", "num_gpus", "word"),
    [
        ("", 2, "--num_gpus=2"),
        ("-1", 1, "--num_gpus=1"),
        ("3", 1, "--include=localhost:3"),
        ("2, 3", 2, "--include=localhost:2,3"),
        ("2,3,5", 2, "--include=localhost:2,3"),
        ("2,2,3", 2, "--include=localhost:2,3"),
    ],
)
def test_the_gpus_that_the_user_shows_are_those_that_are_used(
    machine: Machine, visible: str, num_gpus: int, word: str
) -> None:
    env = {"CUDA_VISIBLE_DEVICES": visible, "DS_ACCELERATOR": "cuda"}
    assert machine.plan(wanted=Wanted(machine.config, num_gpus=num_gpus, env=env)).spec.argv[1] == word
    wanted = Wanted(machine.config, num_gpus=num_gpus, env=env | {"DS_ACCELERATOR": "cpu"})
    assert machine.plan(wanted=wanted).spec.argv[1] == f"--num_gpus={num_gpus}"


@pytest.mark.parametrize(("visible", "num_gpus"), [("0", 2), ("0,0", 2), ("GPU-8932f937", 1), ("0,GPU-1", 2)])
def test_gpus_that_can_not_be_given_are_refused(machine: Machine, visible: str, num_gpus: int) -> None:
    env = {"CUDA_VISIBLE_DEVICES": visible, "DS_ACCELERATOR": "cuda"}
    wanted = Wanted(machine.config, num_gpus=num_gpus, env=env)
    assert refusal(lambda: machine.plan(wanted=wanted)).field == "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("path", ["/etc", "../../../etc", "link"])
def test_a_path_among_the_arguments_is_confined(machine: Machine, path: str) -> None:
    (machine.app / "link").symlink_to("/etc")
    assert refusal(lambda: machine.plan("--dump_dataset", path)).field == "args"
