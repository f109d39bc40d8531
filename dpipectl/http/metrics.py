"""What Prometheus scrapes: the status as numbers, and what the shim itself does.

Why: whoever rents several machines watches them with Prometheus, not with a page each.

Known gap: the figures are those of the moment of the scrape; a run shorter than the interval is not seen.
"""

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from dpipectl.client import Failed
from dpipectl.http.daemon import Daemon
from dpiped import messages
from dpiped.errors import DpipedError

# A second series per count, of the time it began, serves nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("idle", "starting", "running", "stopping")
OUTCOMES = ("completed", "stopped", "failed", "unknown")
FIGURES = {
    "step": "Optimizer step of the active run",
    "total_steps": "Step at which the active run will end",
    "epoch": "Epoch of the active run",
    "loss": "Loss last printed by the active run",
    "samples_per_second": "Examples per second of the active run",
    "eta_seconds": "Seconds until the active run will probably end",
    "elapsed_seconds": "Seconds since the active run was launched",
}


class Metrics:
    """The shim's own counts."""

    def __init__(self, daemon: Daemon) -> None:
        self._registry = CollectorRegistry()
        names = ("method", "path", "status")
        self.requests = Counter("dpipe_http_requests", "Requests answered", names, registry=self._registry)
        self.followers = Gauge("dpipe_http_followers", "Open event streams", registry=self._registry)
        text = "Requests that the daemon has not answered yet"
        waiting = Gauge("dpipe_http_daemon_requests", text, registry=self._registry)
        waiting.set_function(lambda: daemon.waiting)

    def text(self) -> bytes:
        return generate_latest(self._registry)


async def metrics(request: Request) -> Response:
    """In Prometheus' text format; `dpiped_up` is 0 while the daemon does not answer."""
    daemon: Daemon = request.app.state.daemon
    own: Metrics = request.app.state.metrics
    try:
        status = await daemon.ask(messages.GetStatus(), messages.Status)
    except (DpipedError, Failed):
        status = None
    registry = CollectorRegistry()
    registry.register(_Once(status))
    return Response(generate_latest(registry) + own.text(), media_type=CONTENT_TYPE)


class _Once(Collector):
    """One status as metrics."""

    def __init__(self, status: messages.Status | None) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily("dpiped_up", "Does the daemon answer?", value=float(status is not None))
        if status is None:
            return
        yield _one_of("dpiped_state", "What the daemon does", "state", STATES, status.state)
        for name, text in FIGURES.items():
            value = getattr(status.run, name) if status.run else None
            if value is not None:
                yield GaugeMetricFamily(f"dpiped_run_{name}", text, value=value)
        last = status.last_run.outcome if status.last_run else ""
        yield _one_of("dpiped_last_run", "How the last run ended", "outcome", OUTCOMES, last)
        ready = float(status.tensorboard.state == "ready")
        yield GaugeMetricFamily("dpiped_tensorboard_ready", "Does TensorBoard answer?", value=ready)
        yield CounterMetricFamily("dpiped_revisions", "Changes of the status", value=status.revision)


def _one_of(name: str, text: str, label: str, values: tuple[str, ...], now: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], float(value == now))
    return family
