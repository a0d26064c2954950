from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from doors import KEY, insert_job, open_door
from modelworks.app.answers import DeploymentStatus
from modelworks.app.metrics import _engine_families
from modelworks.core import clock
from modelworks.core.nouns import Deployment
from modelworks.core.states import DeploymentState
from modelworks.serve.engine import EngineStats


def test_metrics_are_prometheus_text_behind_the_key(tmp_path: Path) -> None:
    with open_door(tmp_path, api_key=KEY) as door, door.client as client:
        insert_job(door.services)
        assert client.get("/metrics").status_code == 401
        reply = client.get("/metrics", headers={"x-api-key": KEY})

    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    jobs = {sample.labels["state"]: sample.value for sample in families["modelworks_jobs"].samples}
    assert (jobs["queued"], jobs["running"]) == (1, 0)
    assert {"modelworks_requests", "modelworks_time_to_first_token_seconds", "modelworks_num_requests_waiting"} <= set(
        families
    )


def test_metrics_can_be_open(tmp_path: Path) -> None:
    with open_door(tmp_path, api_key=KEY, open_metrics=True) as door, door.client as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_engines_are_summed_by_model() -> None:
    deployment = Deployment(
        id="1", model="2", model_name="me/first", engine="native", device="cpu", created_at=clock.now()
    )
    stats = EngineStats(
        running=3, waiting=1, adapters=(), max_context=8, kv_used_tokens=30, kv_total_tokens=40, rss_bytes=1,
        dtype="float32", requests=9, finished=5, aborted=0, failed=0, preempted=2, generated_tokens=7,
        prompt_tokens=100, steps=4, cached_tokens=60,
    )  # fmt: skip
    status = DeploymentStatus(
        deployment=deployment, state=DeploymentState.READY, adapters=(), outstanding=8, restarts=1, pids=(), error=None,
        stats=(stats, stats),
    )  # fmt: skip

    told = {sample.name: sample.value for family in _engine_families([status]) for sample in family.samples}

    assert told == {
        "modelworks_num_requests_waiting": 2, "modelworks_kv_cache_usage_perc": 0.75,
        "modelworks_engine_memory_bytes": 0, "modelworks_engines": 0, "modelworks_engine_restarts_total": 1,
        "modelworks_num_requests_running": 6, "modelworks_kv_cache_used_tokens": 60,
        "modelworks_kv_cache_total_tokens": 80, "modelworks_num_preemptions_total": 4,
        "modelworks_prefix_cache_hits_total": 120, "modelworks_prefix_cache_queries_total": 200,
    }  # fmt: skip
