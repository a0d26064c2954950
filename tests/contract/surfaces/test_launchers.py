"""The documents' own start commands, typed in launchers/: each answers on the port its document names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from contract.surfaces.ledger import COMMANDS, taken
from contract.surfaces.world import BIN, Sources, clean_environment
from doors import KEY

LAUNCHERS = Path(__file__).parents[3] / "launchers"
# The command line that S3's third step describes in words.
MODEL_SERVER = "python -m model_api --model model_name --device cpu --port 9999"
# Each command that starts a server, an address it answers and a key of the answer.
STARTS: dict[str, tuple[str, str, str]] = {
    "python run_api.py": ("GET", "http://localhost:5000/api/health", "timestamp"),
    "python main.py": ("GET", "http://localhost:8000/jobs", "jobs"),
    'PYTHONPATH="/path/to/project/" python -m model_api.py': ("POST", "http://localhost:9999/api/v1/", "info"),
    MODEL_SERVER: ("POST", "http://localhost:9999/api/v1/", "info"),
    "python start_slm_api.py": ("GET", "http://localhost:5000/slm/info", "model_loaded"),
    "python start_slm_api.py --port 8080 --host 0.0.0.0": ("GET", "http://localhost:8080/slm/info", "model_loaded"),
    "python start_slm_api.py --debug": ("GET", "http://localhost:5000/slm/info", "model_loaded"),
}
TRIES = ("python test_slm_api.py", 'python test_slm_api.py --prompt "Tell me about artificial intelligence"')


@pytest.fixture
def home(tmp_path: Path, sources: Sources) -> Path:
    sources.fill(tmp_path / "home", None, None)
    return tmp_path / "home"


def environment(home: Path, **more: str) -> dict[str, str]:
    """As in a shell where `python` is the one with Modelworks in it."""
    own = clean_environment(MODELWORKS_HOME=str(home), MODELWORKS_HUB_OFFLINE="1", **more)
    return own | {"PATH": f"{BIN}:{own['PATH']}"}


@contextmanager
def typed(line: str, home: Path) -> Iterator[httpx2.Client]:
    """Type a command and wait until it says that it listens; Ctrl-C it at the end."""
    # Whom other machines can reach asks for a key: the document has none, so its owner sets one.
    more = {"MODELWORKS_API_KEY": KEY} if "0.0.0.0" in line else {}
    log = home.parent / "said.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            # bash becomes the one command it is given, so a signal reaches the server.
            ["bash", "-c", line], env=environment(home, **more), cwd=LAUNCHERS, stdout=said, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert process.stderr is not None
    try:
        heard = ""
        while "Ctrl-C" not in heard:
            text = process.stderr.readline()
            assert text, f"it ended with {process.wait()} and said {heard}"
            heard += text
        with httpx2.Client(
            trust_env=False, timeout=60, headers={"x-api-key": more.get("MODELWORKS_API_KEY", "")}
        ) as web:
            yield web
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_every_command_of_the_documents_is_typed_here() -> None:
    lines = [line for block in taken(COMMANDS) for line in block.text.splitlines() if line and not line.startswith("#")]

    assert set(lines) == {*STARTS, *TRIES} - {MODEL_SERVER}


@pytest.mark.parametrize("line", STARTS)
def test_a_start_command_answers_on_its_documents_port(line: str, home: Path) -> None:
    method, url, key = STARTS[line]
    with typed(line, home) as web:
        answer = web.request(method, url)

    assert answer.status_code == 200, answer.text
    assert key in answer.json()


def test_the_finetuning_api_brings_its_dashboard_and_pages(home: Path) -> None:
    with typed("python main.py", home) as web:
        pages = {
            url: web.get(url)
            for url in ("http://localhost:5000/", "http://localhost:8000/docs", "http://localhost:8000/redoc")
        }

    assert {url: (page.status_code, page.headers["content-type"].split(";")[0]) for url, page in pages.items()} == (
        dict.fromkeys(pages, (200, "text/html"))
    )


def test_the_model_server_has_loaded_what_its_command_names(home: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    with typed(MODEL_SERVER, home) as web:
        activated = web.post("http://localhost:9999/api/v1/model_name/activate", json={}).json()
        answer = web.post("http://localhost:9999/api/v1/model_name/call", json=body).json()

    assert activated["status"] == 0
    assert (answer["status"], type(answer["result"])) == (0, str)


@pytest.mark.parametrize("line", TRIES)
def test_the_documents_trial_of_the_slm_api_succeeds(line: str, home: Path) -> None:
    with typed("python start_slm_api.py", home):
        done = subprocess.run(
            ["bash", "-c", line], env=environment(home), cwd=LAUNCHERS, capture_output=True, text=True, timeout=120
        )

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "5 of 5 ok"), done.stdout
