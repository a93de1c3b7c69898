"""Counters and histograms under TensorFlow Serving's names, in Prometheus' text format.

The names hold colons and counters have no ``_total``, as the original writes them
(``:tensorflow:serving:request_count``), so that dashboards and alerts go on working;
prometheus-client writes neither. Each series has one label more: ``model_version``.

Rules this module keeps:

* A name that a client made up makes no series: it is counted under an empty model name.
* The series of a version that is no longer there are dropped.
* Buckets are the original's: 10 us times 1.8 to the power of 0..32, and infinity; 100 us
  times 1.2 to the power of 0..51 in queues.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS = tuple(10 * 1.8**power for power in range(33))
_COUNT_BUCKETS = tuple(float(2**power) for power in range(21))
_QUEUE_BUCKETS = tuple(100 * 1.2**power for power in range(52))
_SIZE_BUCKETS = tuple(float(2**power) for power in range(14))

Labels = tuple[str, ...]


class _Counter:
    kind = "counter"

    def __init__(self, name: str, help_: str, labels: Labels) -> None:
        self.name, self.help, self.labels = name, help_, labels
        self.series: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self.series[labels] = self.series.get(labels, 0) + amount

    def lines(self) -> Iterable[str]:
        for labels, value in self.series.items():
            yield f"{self.name}{_braced(self.labels, labels)} {value:.17g}"


@dataclass
class _Distribution:
    counts: list[int]
    total: float = 0.0


class _Histogram:
    kind = "histogram"

    def __init__(self, name: str, help_: str, labels: Labels, limits: tuple[float, ...]) -> None:
        self.name, self.help, self.labels, self._limits = name, help_, labels, limits
        self.series: dict[Labels, _Distribution] = {}

    def add(self, labels: Labels, value: float) -> None:
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = _Distribution([0] * (len(self._limits) + 1))
        found.counts[bisect.bisect_left(self._limits, value)] += 1
        found.total += value

    def lines(self) -> Iterable[str]:
        names = (*self.labels, "le")
        for labels, found in self.series.items():
            running = 0
            for limit, count in zip((*self._limits, None), found.counts, strict=True):
                running += count
                text = "+Inf" if limit is None else f"{limit:.10g}"
                yield f"{self.name}_bucket{_braced(names, (*labels, text))} {running}"
            yield f"{self.name}_sum{_braced(self.labels, labels)} {found.total:.17g}"
            yield f"{self.name}_count{_braced(self.labels, labels)} {running}"


def _prefixed(name: str) -> str:
    return f":tensorflow:serving:{name}"


@dataclass
class Metrics:
    """What a server counts; may be used from any thread.

    Attributes:
        known: whether a model of this name is configured.
        present: the versions whose series are shown, as ``(name, "version")``.
    """

    known: Callable[[str], bool] = lambda _: True
    present: Callable[[], set[tuple[str, str]]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        model = ("model_name", "model_version")
        self._requests = _Counter(
            _prefixed("request_count"), "The total number of requests.", (*model, "status")
        )
        self._latency = _Histogram(
            _prefixed("request_latency"),
            "Distribution of wall time (in microseconds) for a request.",
            (*model, "API", "entrypoint"),
            _LATENCY_BUCKETS,
        )
        self._runtime = _Histogram(
            _prefixed("runtime_latency"),
            "Distribution of wall time (in microseconds) for the runtime.",
            (*model, "API", "runtime"),
            _LATENCY_BUCKETS,
        )
        of_examples = ("model", "model_version")  # the original's label for these two
        self._examples = _Counter(
            _prefixed("request_example_count_total"),
            "The total number of tf.Examples.",
            of_examples,
        )
        self._example_counts = _Histogram(
            _prefixed("request_example_counts"),
            "The distribution of tf.Examples in a request.",
            of_examples,
            _COUNT_BUCKETS,
        )
        self._warm_up = _Histogram(
            _prefixed("model_warmup_latency"),
            "Distribution of wall time (in microseconds) for warming up the model.",
            (*model, "status"),
            _LATENCY_BUCKETS,
        )
        self._queued = _Histogram(
            _prefixed("batching_session:queuing_latency"),
            "Wall time (in microseconds) that requests waited for their batch to begin.",
            (*model, "thread_pool_name"),
            _QUEUE_BUCKETS,
        )
        self._batch_runs = _Counter(
            _prefixed("batching_session:wrapped_run_count"), "Batches that were run.", model
        )
        self._asked_rows = _Histogram(
            _prefixed("batching_session:input_batch_size"),
            "Rows of the inputs of requests.",
            model,
            _SIZE_BUCKETS,
        )
        self._batch_rows = _Histogram(
            _prefixed("batching_session:processed_batch_size"),
            "Rows of batches, with what they were filled up with.",
            model,
            _SIZE_BUCKETS,
        )
        self._filling = _Histogram(
            _prefixed("batching_session:padding_size"),
            "Rows with which batches were filled up.",
            (*model, "execution_batch_size"),
            _SIZE_BUCKETS,
        )
        self._loads = _Counter(
            ":tensorflow:cc:saved_model:load_attempt_count",
            "The number of times a model was loaded.",
            (*model, "status"),
        )
        self._load_time = _Counter(
            ":tensorflow:cc:saved_model:load_latency",
            "Latency in microseconds of loads that succeeded.",
            model,
        )

    def request(
        self,
        model: str,
        version: int | None,
        api: str,
        entrypoint: str,
        status: str,
        seconds: float,
    ) -> None:
        """Count a request that has been answered."""
        series = (model if self.known(model) else "", _text(version))
        with self._lock:
            self._requests.add((*series, status))
            if status == "OK":
                self._latency.add((*series, api, entrypoint), seconds * 1e6)

    def ran(self, model: str, version: int, api: str, runtime: str, seconds: float) -> None:
        """Count one run of a model."""
        with self._lock:
            self._runtime.add((model, str(version), api, runtime), seconds * 1e6)

    def batch_asked(self, model: str, version: int, rows: Iterable[int]) -> None:
        """Count a request that may be joined with others: the rows of each of its inputs."""
        with self._lock:
            for each in rows:
                self._asked_rows.add((model, str(version)), each)

    def batch_queued(self, model: str, version: int, pool: str, seconds: float) -> None:
        """Count what a request, or a part of it, has waited."""
        with self._lock:
            self._queued.add((model, str(version), pool), seconds * 1e6)

    def batch_ran(self, model: str, version: int, rows: int, filling: int) -> None:
        """Count a batch, and how many of its rows only filled it up."""
        series = (model, str(version))
        with self._lock:
            self._batch_runs.add(series)
            self._batch_rows.add(series, rows)
            self._filling.add((*series, str(rows)), filling)

    def examples(self, model: str, version: int, count: int) -> None:
        """Count the examples of a Classify, Regress or MultiInference request."""
        with self._lock:
            self._examples.add((model, str(version)), count)
            self._example_counts.add((model, str(version)), count)

    def loaded(self, model: str, version: int, status: str, seconds: float) -> None:
        """Count a load."""
        with self._lock:
            self._loads.add((model, str(version), status))
            if status == "success":
                self._load_time.add((model, str(version)), round(seconds * 1e6))

    def warmed_up(self, model: str, version: int, status: str, seconds: float) -> None:
        """Count a replay of warm-up records."""
        with self._lock:
            self._warm_up.add((model, str(version), status), seconds * 1e6)

    def text(self) -> str:
        """Everything, in Prometheus' text format."""
        present = self.present() if self.present else None
        out: list[str] = []
        with self._lock:
            for metric in vars(self).values():
                if not isinstance(metric, _Counter | _Histogram):
                    continue
                if present is not None:
                    for labels in [one for one in metric.series if one[:2] not in present]:
                        if labels[1]:  # those without a version are of no version's life
                            del metric.series[labels]
                out += [
                    f"# HELP {metric.name} {metric.help}",
                    f"# TYPE {metric.name} {metric.kind}",
                ]
                out += metric.lines()
        return "\n".join(out) + "\n"


def _text(version: int | None) -> str:
    return "" if version is None else str(version)


def _braced(names: Labels, values: Labels) -> str:
    return "{" + ",".join(f'{n}="{_escaped(v)}"' for n, v in zip(names, values, strict=True)) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
