"""The engine of a user's own entry: its class, in a child process that may crash without hurting anybody else."""

from __future__ import annotations

from functools import partial

from modelworks.serve.child import ChildEngine
from modelworks.serve.engine import EngineKind

ENTRY = EngineKind("entry", partial(ChildEngine.start, module="modelworks.serve.entry_process"))
