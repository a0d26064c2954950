"""Fixtures that many tests share."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest

from modelworks.weights import convert, gguf, writer
from modelworks.weights.pull import find_packaged


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder; read-only. Made once and kept while the converter is the same."""
    source = find_packaged("smollm2-135m")
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (convert, gguf, writer))
    key = hashlib.sha256(code + f"{source.name} {source.stat().st_size}".encode()).hexdigest()[:12]
    cache = pytestconfig.cache
    assert cache is not None
    shelf = cache.mkdir("smollm2")
    folder = shelf / key
    if not folder.is_dir():
        # Several pytest processes may find it missing at once: each makes its own, the first rename wins.
        staged = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=shelf))
        convert.convert_gguf(source, staged)
        try:
            staged.rename(folder)
        except OSError:
            shutil.rmtree(staged)
    return folder
