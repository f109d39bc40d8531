"""The README's curl lines, as they are printed."""

import json
import re
import shutil
import subprocess

import pytest

from tests.harness import Workspace
from tests.helpers import HERE, require
from tests.web import MODELS, Shim

README = (HERE.parent / "README.md").read_text()


@pytest.mark.timeout(120)
def test_the_curl_lines_work_as_printed(workspace: Workspace) -> None:
    require(shutil.which("curl") is not None, "curl is not installed")
    workspace.env["SCRIPT"] = json.dumps({"steps": 1_000_000})
    workspace.start_daemon()
    shim, root = Shim(workspace), workspace.root
    lines = re.findall(r"^curl .*$", README, re.MULTILINE)
    assert len(lines) > 10
    form = re.search(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert form is not None
    (root / "form.json").write_text(form[1])
    (root / "datasets/cats").mkdir()
    (root / "datasets/cats/cat.png").touch()
    for line in lines:
        asked = line.replace("http://127.0.0.1:7878", shim.base).replace("seconds=10", "seconds=1")
        command = f"{asked} -w '\\n%{{http_code}}'"
        done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, check=False)
        said, _, status = done.stdout.rpartition("\n")
        assert done.returncode == 0 and status == "200", (line, done.stdout, done.stderr)
        if "train/start" in line:
            workspace.until_step(2)
        if "train/check" in line:
            assert all(f'"{name}"' in said for name in MODELS)
    assert list(root.glob("*.log"))
