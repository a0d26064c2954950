"""What /metrics tells: what the gateway measured, and how engines and jobs are at this moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from modelworks.app.answers import DeploymentStatus
from modelworks.app.services import Services
from modelworks.store.jobs import count_by_state

# Name, what it is, and whose sum over a model's engines it is; a counter begins anew with its engine.
_GAUGES = {
    "num_requests_running": ("Requests that are being decoded.", "running"),
    "kv_cache_used_tokens": ("Positions of the caches that are taken.", "kv_used_tokens"),
    "kv_cache_total_tokens": ("Positions the caches may have.", "kv_total_tokens"),
}
_COUNTERS = {
    "num_preemptions": ("Answers that had to wait again for room.", "preempted"),
    "prefix_cache_hits": ("Tokens of prompts that had been read before.", "cached_tokens"),
    "prefix_cache_queries": ("Tokens of prompts that were looked for.", "prompt_tokens"),
}


async def metrics_text(app: Services) -> bytes:
    """Everything in Prometheus' text format."""
    statuses = await app.gateway.stats()
    jobs = GaugeMetricFamily("modelworks_jobs", "Jobs by state.", labels=["state"])
    for state, count in (await asyncio.to_thread(count_by_state, app.database)).items():
        jobs.add_metric([state.value], count)
    return generate_latest(_Both(app.gateway.metrics.registry, [*_engine_families(statuses), jobs]))


@dataclass
class _Both(CollectorRegistry):
    measured: CollectorRegistry
    now: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.measured.collect()
        yield from self.now


def _engine_families(statuses: Sequence[DeploymentStatus]) -> Iterator[Metric]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"modelworks_{name}", text, labels=["model_name"])

    waiting, usage = gauge("num_requests_waiting", "Requests in the queue."), gauge("kv_cache_usage_perc", "1 is full.")
    memory = gauge("engine_memory_bytes", "Resident memory of the engine processes.")
    engines = gauge("engines", "Engines that answer or will.")
    restarts = CounterMetricFamily("modelworks_engine_restarts", "Engines started again.", labels=["model_name"])
    for status in statuses:
        label = [status.deployment.model_name]
        waiting.add_metric(label, max(0, status.outstanding - sum(stats.running for stats in status.stats)))
        total = sum(stats.kv_total_tokens for stats in status.stats)
        usage.add_metric(label, sum(stats.kv_used_tokens for stats in status.stats) / total if total else 0)
        memory.add_metric(label, sum(replica.rss_bytes for replica in status.replicas))
        engines.add_metric(label, len(status.replicas))
        restarts.add_metric(label, status.restarts)
    yield from (waiting, usage, memory, engines, restarts)
    for kinds, family in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
        for name, (text, field) in kinds.items():
            made = family(f"modelworks_{name}", text, labels=["model_name"])
            for status in statuses:
                made.add_metric([status.deployment.model_name], sum(getattr(one, field) for one in status.stats))
            yield made
