"""The native engine: torch in a child process. Any Llama-shaped checkpoint, adapters of one base side by side."""

from __future__ import annotations

from modelworks.serve.child import ChildEngine
from modelworks.serve.engine import EngineKind

NATIVE = EngineKind("native", ChildEngine.start)
