"""Figures for Prometheus, under vLLM's names with our prefix, so that boards made for it need a search and replace.

Try it alone: `pytest tests/serve/test_chat_api.py -k metrics`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zifio.serve.model import Served

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class _Engines(Collector):
    """What engines know of themselves, asked when somebody looks."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        gauges = {
            "num_requests_running": "Replies that are computed.",
            "num_requests_waiting": "Replies that wait for room.",
            "kv_cache_usage_perc": "Share of the cache that is held, 0 to 1.",
        }
        counters = {
            "prompt_tokens": "Tokens of prompts computed.",
            "generation_tokens": "Tokens drawn.",
            "prefix_cache_hits": "Tokens of prompts that needed no computing.",
            "prefix_cache_queries": "Tokens of prompts.",
            "num_preemptions": "Replies sent back to the queue.",
        }
        made = {
            name: GaugeMetricFamily(f"zifio:{name}", about, labels=["model_name"]) for name, about in gauges.items()
        }
        made |= {
            name: CounterMetricFamily(f"zifio:{name}", about, labels=["model_name"]) for name, about in counters.items()
        }
        for model, served in self._models.items():
            load, stats = served.worker.state
            values = {
                "num_requests_running": load.n_running, "num_requests_waiting": load.n_waiting,
                "kv_cache_usage_perc": load.cache_used, "prompt_tokens": stats.prefill_tokens,
                "generation_tokens": stats.tokens, "prefix_cache_hits": stats.shared_tokens,
                "prefix_cache_queries": stats.shared_tokens + stats.prefill_tokens,
                "num_preemptions": stats.preemptions,
            }  # fmt: skip
            for name, value in values.items():
                made[name].add_metric([model], value)
        return made.values()


class Metrics:
    """The figures of one server."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(models))
        self._success = Counter(
            "zifio:request_success", "Replies by how they ended.", ["model_name", "finished_reason"],
            registry=self._registry,
        )  # fmt: skip
        self._first = self._histogram("time_to_first_token_seconds", "From the request to its first token.")
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request to its end.")

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"zifio:{name}", about, ["model_name"], buckets=_SECONDS, registry=self._registry)

    def first_token(self, model: str, seconds: float) -> None:
        """A request has its first token."""
        self._first.labels(model).observe(seconds)

    def ended(self, model: str, finishes: Iterable[str], seconds: float) -> None:
        """A request has ended, its replies in these ways."""
        for finish in finishes:
            self._success.labels(model, finish).inc()
        self._whole.labels(model).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)
