"""The server as a process: its start, its place in the workspace, what it does not load, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from doors import KEY, serving
from modelworks.app.presence import running_server
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.errors import Denied, Unavailable
from modelworks.core.states import JobState
from modelworks.store.files import try_lock

# The target is 2 s on a quiet machine; here other tests run beside.
START_SECONDS = 8.0


def test_it_starts_quickly_says_where_it_is_and_leaves_the_heavy_libraries_alone(tmp_path: Path) -> None:
    began = time.monotonic()
    with serving(tmp_path / "home") as server:
        url = server.wait_until_ready()
        took = time.monotonic() - began
        health = httpx2.get(f"{url}/modelworks/health").json()
        httpx2.get(f"{url}/modelworks/plugins").raise_for_status()
        httpx2.get(f"{url}/openapi.json").raise_for_status()
        process = psutil.Process(server.process.pid)
        mapped = {Path(region.path).name for region in process.memory_maps()}
        resident = process.memory_info().rss

    assert took < START_SECONDS
    assert health["status"] == "ok"
    assert [name for name in mapped if "torch" in name or "pyarrow" in name or "libarrow" in name] == []
    assert resident < 250e6
    for said in (url, str(tmp_path / "home"), "/v1", "Ctrl-C"):
        assert said in server.said


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.wait_until_ready()
        listening = {
            connection.laddr[0]
            for connection in psutil.Process(server.process.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN and connection.laddr
        }

    assert "127.0.0.1" in listening
    assert listening <= {"127.0.0.1", "::1"}


def test_a_second_server_on_the_workspace_ends_with_3_and_names_the_first(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as first:
        url = first.wait_until_ready()
        with serving(tmp_path / "home") as second:
            _, said = second.process.communicate(timeout=30)
        still = httpx2.get(f"{url}/modelworks/health").status_code

    assert second.process.returncode == 3
    assert url in said
    assert f"process {first.process.pid}" in said
    assert still == 200


def test_a_port_that_is_taken_ends_it_with_3_naming_who_has_it(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, serving(tmp_path / "home", port=taken.getsockname()[1]) as server:
        _, said = server.process.communicate(timeout=30)

    assert server.process.returncode == 3
    assert f"process {os.getpid()}" in said
    assert not (tmp_path / "home" / "server.json").exists()


def test_another_address_without_a_key_ends_it_with_2(tmp_path: Path) -> None:
    with serving(tmp_path / "home", MODELWORKS_HOST="0.0.0.0") as server:
        _, said = server.process.communicate(timeout=30)

    assert server.process.returncode == 2
    assert "MODELWORKS_API_KEY" in said


def test_with_a_key_it_listens_elsewhere_and_asks_everybody_for_it(tmp_path: Path) -> None:
    with serving(tmp_path / "home", MODELWORKS_HOST="0.0.0.0", MODELWORKS_API_KEY=KEY) as server:
        url = server.wait_until_ready()
        with Client(url, KEY) as client:
            assert client.health()["status"] == "ok"
        with Client(url) as stranger, pytest.raises(Denied, match="no API key"):
            stranger.health()
        _, rest = server.stop()

    assert KEY not in server.said + rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_on_a_signal_and_others_see_that_it_is_gone(tmp_path: Path, number: signal.Signals) -> None:
    settings = Settings.model_validate({"home": tmp_path / "home"})
    with serving(tmp_path / "home") as server:
        url = server.wait_until_ready()
        seen = running_server(settings)
        began = time.monotonic()
        code, _ = server.stop(number)

    assert (code, time.monotonic() - began < 10) == (0, True)
    assert seen is not None
    assert (seen.url, seen.pid) == (url, server.process.pid)
    assert running_server(settings) is None
    with Client(url) as client, pytest.raises(Unavailable, match="modelworks serve"):
        client.health()


def test_a_killed_server_leaves_the_workspace_to_the_next(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path / "home"})
    with serving(tmp_path / "home") as server:
        port = int(server.wait_until_ready().rpartition(":")[2])
        server.stop(signal.SIGKILL)
    assert running_server(settings) is None

    with serving(tmp_path / "home", port=port) as following:
        assert following.wait_until_ready().endswith(f":{port}")


def test_a_job_runs_and_a_client_follows_it_over_a_kill_of_the_server(tmp_path: Path) -> None:
    # The hub may not be asked, so the job fails, which is all that is needed here. While the test holds the lock of
    # the workspace's worker, the job waits.
    (tmp_path / "home").mkdir()
    lock = try_lock(tmp_path / "home" / "worker.lock")
    assert lock is not None
    with serving(tmp_path / "home") as first:
        url = first.wait_until_ready()
        client = Client(url)
        job = client.submit("pull", {"source": "acme/nothing"})
        stream = client.events(job.id)
        heard = [next(stream)]
        first.stop(signal.SIGKILL)
    os.close(lock)
    with serving(tmp_path / "home", port=int(url.rpartition(":")[2])) as second:
        second.wait_until_ready()
        heard += list(stream)
        ended = client.job(job.id)
        client.close()

    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert "acme/nothing" in ended.error.message
    assert [event.seq for event in heard] == list(range(1, len(heard) + 1))
    assert [event.body["state"] for event in heard if event.type == "state"] == ["queued", "running", "failed"]


def test_its_log_is_json_lines(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        with Client(server.wait_until_ready()) as client:
            client.wait(client.submit("pull", {"source": "acme/nothing"}).id)
        _, rest = server.stop()

    lines = [json.loads(line) for line in rest.splitlines()]
    assert "run started" in {line["message"] for line in lines}


def test_no_thread_and_no_upload_in_flight_holds_up_its_end(tmp_path: Path) -> None:
    busy = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    with serving(tmp_path / "home", before=busy) as server:
        url = server.wait_until_ready()
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"PUT /modelworks/datasets/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            # An answer to a later request says that the server has seen the earlier one.
            httpx2.get(f"{url}/modelworks/health")
            began = time.monotonic()
            code, _ = server.stop()

    assert code == 0
    assert time.monotonic() - began < 10
    assert list((tmp_path / "home" / "staging").glob("*")) == []


def test_the_server_module_alone_does_not_import_torch() -> None:
    command = (
        "import sys, modelworks.server.run; print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
