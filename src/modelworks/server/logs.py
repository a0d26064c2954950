"""The server's log: JSON lines on stderr, without secrets."""

from __future__ import annotations

import atexit
import json
import logging
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any

from modelworks.core.clock import to_iso
from modelworks.core.config import Settings

HIDDEN = "***"
# Lines that may wait for a slow reader; further ones are lost. And how long they are waited for at the end.
MOST_WAITING, LAST_SECONDS = 10_000, 1.0
# Credentials in a URL, keys and tokens in their usual shapes, and whatever stands behind such a header's name.
_SHAPES = re.compile(
    r"(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)|\b(?:sk-|hf_)[A-Za-z0-9_-]{8,}"
    r"|(?<=bearer )[^\s\"',]+|(?<=x-api-key: )[^\s\"',]+",
    re.IGNORECASE,
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the facts given as `extra`."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, object] = {
            "at": to_iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._clean(record.getMessage()),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                body[key] = value if isinstance(value, int | float | bool) else self._clean(str(value))
        if record.exc_info:
            body["traceback"] = self._clean(self.formatException(record.exc_info))
        return json.dumps(body)

    def _clean(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return _SHAPES.sub(HIDDEN, text)


class _Unblocked(QueueHandler):
    """Hands lines to a thread that writes: who does not read our stderr must not stop the server."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(Full):
            self.queue.put_nowait(record)


def _write_out(waiting: Queue[Any]) -> None:
    until = time.monotonic() + LAST_SECONDS
    while waiting.unfinished_tasks and time.monotonic() < until:
        time.sleep(0.01)


def log_to_stderr(settings: Settings) -> None:
    """Send every logger's lines of the level asked for, and of libraries only warnings, to stderr."""
    secrets = tuple(settings.keys.values()) + ((settings.hf_token.get_secret_value(),) if settings.hf_token else ())
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines(secrets))
    waiting = Queue[Any](MOST_WAITING)
    QueueListener(waiting, lines).start()
    atexit.register(_write_out, waiting)
    logging.basicConfig(level=logging.WARNING, handlers=[_Unblocked(waiting)], force=True)
    logging.getLogger("modelworks").setLevel(settings.log_level.upper())
