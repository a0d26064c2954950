from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from modelworks.server.logs import JsonLines


def line(message: str, **facts: object) -> dict[str, object]:
    record = logging.makeLogRecord(
        {"name": "modelworks.x", "levelno": 30, "levelname": "WARNING", "msg": message} | facts
    )
    text = JsonLines(("geheim-123",)).format(record)
    assert "\n" not in text
    body: dict[str, object] = json.loads(text)
    return body


def test_a_line_is_an_object_with_its_facts_apart() -> None:
    body = line("run ended", job="a\nb", runs=2)

    assert body["message"] == "run ended"
    assert (body["level"], body["logger"], body["job"], body["runs"]) == ("warning", "modelworks.x", "a\nb", 2)
    assert str(body["at"]).endswith("Z")


@pytest.mark.parametrize(
    "text",
    [
        "key geheim-123 given",
        "Authorization: Bearer abcdefgh-geheim",
        "x-api-key: whatever-geheim",
        "token hf_geheimgeheimgeheim was refused",
        "sk-geheimgeheimgeheim",
        "postgresql+psycopg://user:geheim@host/db",
    ],
)
def test_secrets_are_blacked_out_wherever_they_stand(text: str) -> None:
    assert "geheim" not in json.dumps(line(text, fact=text))


def test_a_traceback_is_kept_without_its_secrets() -> None:
    try:
        raise ValueError("geheim-123")
    except ValueError as error:
        body = line("bug", exc_info=(ValueError, error, error.__traceback__))

    assert "ValueError: ***" in str(body["traceback"])


def test_who_does_not_read_the_log_stops_nobody() -> None:
    script = (
        "import logging; from modelworks.core.config import Settings; from modelworks.server import logs\n"
        "logs.log_to_stderr(Settings())\n"
        "for number in range(5000): logging.getLogger('modelworks').info('line %d of a long log', number)\n"
        "print('went on', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None

    assert process.stdout.readline() == b"went on\n"

    process.kill()
    process.communicate()
