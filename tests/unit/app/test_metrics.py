from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from doors import KEY, insert_job, open_door


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
