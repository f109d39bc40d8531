"""What the shim offers beyond ControlPilot's four calls."""

import json
import socket
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from dpipectl.http import operations
from dpipectl.http.answers import without_paths
from dpipectl.http.app import create_app
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.web import Shim


def test_status_waits_for_a_change(shim: Shim) -> None:
    status, found = shim.get("/status")
    assert status == 200 and found["state"] == "idle" and found["run"] is None
    assert shim.get("/status", after=found["revision"], wait=0.05)[1]["revision"] == found["revision"]
    run = shim.workspace.start(shim.workspace.config(until=str(shim.workspace.go)))
    changed = shim.get("/status", after=found["revision"], wait=10)[1]
    assert changed["revision"] != found["revision"]
    assert changed["run"]["id"] == run


def test_runs_one_run_its_lines_and_its_log(shim: Shim) -> None:
    workspace = shim.workspace
    assert shim.get("/runs") == (200, {"type": "runs", "runs": []})
    for path in ("/runs/last", "/runs/last/lines", "/runs/last/log"):
        assert shim.get(path)[0] == 404
    ids = []
    for steps in (5, 6):
        ids.append(workspace.start(workspace.config(steps=steps)))
        workspace.until_ended(ids[-1])
    listed = shim.get("/runs", limit=5)[1]["runs"]
    assert [each["id"] for each in listed] == ids[::-1] and listed[0]["state"] == "completed"
    assert len(shim.get("/runs", limit=1)[1]["runs"]) == 1
    found = shim.get(f"/runs/{ids[0]}")[1]
    assert found["summary"]["step"] == 5 and found["ended"] is True and found["summary"]["pid"] > 1
    text = workspace.log_text(ids[0])
    answer = shim.client.get(f"/runs/{ids[0]}/log")
    assert answer.text == text and answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{ids[0]}.log"'
    pages, after = [], 0
    while True:
        page = shim.get(f"/runs/{ids[0]}/lines", after=after, limit=3)[1]
        pages += page["lines"]
        if page["eof"]:
            break
        after = page["next"]
    assert pages == text.splitlines()
    assert shim.get("/runs/2", limit=1)[0] == 404
    status, found = shim.get(f"/runs/{ids[0][:10]}")
    assert status == 400 and "fits 2 runs" in found["detail"]


def test_a_long_log_is_downloaded_whole(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config("chatty", lines=150_000, steps=1))
    workspace.until_ended(run)
    assert len(workspace.log_text(run)) > 3 << 20
    assert shim.client.get(f"/runs/{run}/log").text == workspace.log_text(run)


def test_save_stop_with_a_checkpoint_and_resume(shim: Shim) -> None:
    workspace = shim.workspace
    assert shim.post("/train/save")[0] == 409
    assert shim.post("/train/resume", {})[0] == 404
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    status, saved = shim.post("/train/save")
    assert status == 200 and saved["checkpoint"].startswith("global_step")
    status, found = shim.post("/train/resume", {})
    assert status == 409 and found["detail"] == "A training process is already running."
    assert shim.post("/train/stop", mode="save")[1]["status"] == "stopped"
    ended = shim.get("/runs/last")[1]
    assert ended["summary"]["state"] == "stopped" and ended["checkpoint"]
    status, resumed = shim.post("/train/resume", {"run": run, "num_gpus": 1})
    assert status == 200 and resumed["status"] == "started" and resumed["resumed_from"] == run
    assert shim.get("/status")[1]["run"]["id"] == resumed["run"]
    assert shim.post("/train/stop", mode="kill", timeout=1)[1]["status"] == "stopped"
    wrong: list[tuple[Any, str]] = [
        ({"run": 3}, "run"),
        ({"num_gpus": 0}, "num_gpus"),
        ({"what": 1}, "what"),
        ({"wandb_api_key": "a b"}, "wandb_api_key"),
    ]
    for body, field in wrong:
        status, found = shim.post("/train/resume", body)
        assert status == 422 and found["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("/train/stop", {"mode": "gently"}, "mode"),
        ("/train/stop", {"timeout": "-1"}, "timeout"),
        ("/train/stop", {"wait": "nan"}, "wait"),
        ("/train/save", {"wait": "61"}, "wait"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(
    shim: Shim, path: str, asked: dict[str, str], field: str
) -> None:
    status, found = shim.post(path, **asked)
    assert status == 422 and found["detail"][0]["loc"] == ["query", field]


def test_defaults_are_a_form_that_a_preview_takes(shim: Shim) -> None:
    root = shim.workspace.root
    found = shim.get("/train/defaults")[1]
    assert found["roots"]["dataset_path"] == [f"{root}/datasets"]
    assert found["roots"]["vae_path"] == [str(root)]
    form = found["form"] | dict.fromkeys(
        ("transformer_path", "vae_path", "llm_path", "clip_path"), "models/x"
    )
    status, texts = shim.post("/train/preview", form)
    assert status == 200 and texts["training_path"] == f"{root}/configs/training_config.toml"
    assert tomllib.loads(texts["training_toml"])["epochs"] == 1000
    assert tomllib.loads(texts["dataset_toml"])["directory"][0]["path"] == f"{root}/datasets"
    assert not Path(texts["training_path"]).exists()
    assert shim.post("/train/preview", form | {"epochs": 0})[0] == 422
    assert shim.post("/train/preview", form | {"dataset_path": "none"})[0] == 400


def test_check_says_all_that_is_wrong(shim: Shim) -> None:
    form = shim.form(dataset_path="none", betas="x", output_dir="../y", vae_path="/etc/passwd")
    status, found = shim.post("/train/check", form)
    assert status == 200 and found["ok"] is False
    assert [each["field"] for each in found["findings"]] == [
        "dataset_path",
        "output_dir",
        "transformer_path",
        "vae_path",
        "llm_path",
        "clip_path",
        "betas",
    ]
    (shim.workspace.root / "models").mkdir()
    for name in ("transformer_path", "vae_path", "llm_path", "clip_path"):
        Path(shim.form()[name]).touch()
    assert shim.post("/train/check", shim.form()) == (200, {"ok": True, "findings": []})


def test_health_and_metrics_with_and_without_a_daemon(shim: Shim) -> None:
    assert shim.get("/health")[1]["status"] == "ok"
    shim.workspace.start(shim.workspace.config(until=str(shim.workspace.go)))
    shim.workspace.until_step(3)
    figures = metrics(shim)
    assert figures["dpiped_up"] == 1 and figures["dpiped_state{state=running}"] == 1
    assert figures["dpiped_run_step"] >= 3 and figures["dpiped_run_loss"] > 0
    assert figures["dpipe_http_requests_total{method=GET,path=/health,status=200}"] >= 1
    shim.workspace.kill_daemon()
    assert shim.get("/health") == (503, {"detail": "dpiped does not answer"})
    for path in ("/status", "/train/logs", "/runs", "/train/defaults", "/runs/last/log"):
        status, found = shim.get(path)
        assert status == 503 and str(shim.workspace.root) not in found["detail"]
    for path in ("/train/stop", "/train/save"):
        assert shim.post(path)[0] == 503
    assert shim.post("/train/start", shim.form())[0] == 503
    assert metrics(shim)["dpiped_up"] == 0
    shim.workspace.start_daemon()
    assert shim.get("/status")[0] == 200


def metrics(shim: Shim) -> dict[str, float]:
    text = shim.client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_what_is_not_there_is_json_as_well(shim: Shim) -> None:
    assert shim.get("/nothing") == (404, {"detail": "Not Found"})
    assert shim.get("/train/start")[0] == 405
    assert shim.client.get("/train/start").headers["allow"] == "POST"
    answer = shim.client.get(f"{shim.base}/elsewhere")
    assert answer.status_code == 404 and answer.json() == {"detail": "Not Found"}
    answer = shim.client.head("/events")
    assert answer.status_code == 200 and not answer.content


def test_the_shim_is_killed_and_the_training_does_not_notice(shim: Shim) -> None:
    workspace = shim.workspace
    _, started = shim.post("/train/start", shim.form())
    step = workspace.until_step(3)["step"]
    shim.kill()
    assert workspace.until_step(step + 5)["pid"] == started["pid"]
    shim.start()
    assert shim.get("/train/logs")[1]["pid"] == started["pid"]


def test_mounted_in_another_application(dpiped: Workspace) -> None:
    """As ControlPilot does it: the prefix is the outer application's, and so are host and password."""

    async def home(_: Any) -> JSONResponse:
        return JSONResponse("ControlPilot")

    inner = create_app(socket=dpiped.env["DIFFPIPE_SOCKET"], behind_another=True)
    outer = Starlette(routes=[Route("/", home), Mount("/dpipe", inner)])
    with TestClient(outer, base_url="http://pod-7878.example.net") as client:
        assert client.get("/").json() == "ControlPilot"
        assert client.get("/dpipe/status").json()["state"] == "idle"
        assert client.get("/dpipe/train/logs").json() == {"pid": None, "lines": []}
        assert client.get("/dpipe/openapi.json").json()["servers"] == [{"url": "/dpipe"}]
        answer = client.post("/dpipe/train/stop", headers={"origin": "https://evil.example"})
        assert answer.status_code == 403


def test_the_document_describes_every_route(shim: Shim) -> None:
    document = shim.get("/openapi.json")[1]
    assert document["openapi"] == "3.1.0" and document["servers"] == [{"url": "/dpipe"}]
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(each.method, each.path) for each in operations.ALL}
    form = document["components"]["schemas"]["Form"]
    assert form["properties"]["epochs"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1_000_000,
        "default": 1000,
        "description": "How often the whole data set is gone through.",
        "x-group": "training",
        "x-unit": "epochs",
    }
    assert "dataset_path" in form["required"] and "epochs" not in form["required"]
    assert json.dumps(document)  # nothing in it that JSON has not


@pytest.mark.parametrize(
    ("text", "sent", "shown"),
    [
        ("there is no folder /srv/data/x", "", "there is no folder x"),
        ("there is no folder '/srv/data/x'", "/srv/data/x", "there is no folder '/srv/data/x'"),
        ("[Errno 2]: '/opt/venv/bin/deepspeed'", "/opt", "[Errno 2]: 'deepspeed'"),
        ("a/b and 1/2", "", "a/b and 1/2"),
        ("/", "", "/"),
        ("config: /w/c.toml is not TOML", "", "config: c.toml is not TOML"),
    ],
)
def test_paths_are_cut_out_of_errors(text: str, sent: str, shown: str) -> None:
    assert without_paths(text, sent) == shown


def test_paths_are_as_they_are_and_a_lost_client_is_no_traceback(shim: Shim) -> None:
    for path in ("/status/", "/train/logs/", "/page/", "/page/none.js"):
        assert shim.get(path)[0] == 404
    with socket.create_connection(("127.0.0.1", shim.port)) as connection:
        connection.sendall(b"POST /dpipe/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nx")
    wait_until(
        lambda: metrics(shim).get("dpipe_http_requests_total{method=POST,path=/login,status=400}"), "it"
    )
    assert "Traceback" not in shim.log()


def test_deeply_nested_lists_and_huge_numbers_are_no_500(shim: Shim) -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    for field in ("betas", "resolutions_input", "ar_buckets"):
        for value in (deep, "[1" + "0" * 400 + ", 1]", "[" * 5000, [1e308, 1e308], "[NaN]"):
            status, found = shim.post("/train/start", shim.form(**{field: value}))
            assert status == 422 and found["detail"][0]["loc"] == ["body", field], value
    for path in ("~a\0b", "~" + "x" * 5000, "~nobody-here/x", "$HOME\0"):
        assert shim.post("/train/start", shim.form(dataset_path=path))[0] == 400
    assert shim.post("/train/resume", {"run": deep, "x": deep})[0] == 422


def test_ended_with_a_waiting_request_it_ends_at_once(shim: Shim) -> None:
    wait_until(lambda: shim.get("/status")[1]["notices"], "what is told at the start")
    revision = shim.get("/status")[1]["revision"]
    waiting = threading.Thread(target=lambda: shim.get("/status", after=revision, wait=30), daemon=True)
    waiting.start()
    wait_until(lambda: shim.workspace.status()["revision"] == revision, "it waits")
    begun = time.monotonic()
    assert shim.end() == 0
    assert time.monotonic() - begun < 1.5 and "Traceback" not in shim.log()


def test_many_requests_at_once(shim: Shim) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda _: shim.client.get("/status").status_code, range(400)))
    assert found == [200] * 400
    wait_until(lambda: shim.get("/status")[0] == 200, "it still answers")
