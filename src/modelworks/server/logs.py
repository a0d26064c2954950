"""The server's log: JSON lines on stderr, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from modelworks.core.clock import to_iso
from modelworks.core.config import Settings

HIDDEN = "***"
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


def log_to_stderr(settings: Settings) -> None:
    """Send every logger's lines of the level asked for, and of libraries only warnings, to stderr."""
    secrets = tuple(settings.keys.values()) + ((settings.hf_token.get_secret_value(),) if settings.hf_token else ())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(secrets))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("modelworks").setLevel(settings.log_level.upper())
