"""A model as the GGUF file that llama.cpp and OpenVINO open: written once, kept as long as the model is the same.

`python -m modelworks.serve.gguf_file FOLDER FILE NAME` writes one, since that needs torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from modelworks.core.errors import ModelworksError
from modelworks.core.generation import EngineFailed
from modelworks.core.ids import new_id
from modelworks.serve.engine import EngineSpec, Place
from modelworks.weights.gguf_export import check_gguf, write_gguf

# Files of models that were served last; each is as large as its model.
KEPT = 4


async def gguf_of(spec: EngineSpec, place: Place) -> Path:
    """The file of a model folder in f16, beside the logs of the engines.

    Raises:
        Unsupported: this architecture cannot be written.
        EngineFailed: why it could not be written.
    """
    folder, shelf = Path(spec.model_folder), place.log_path.parent / "gguf"
    check_gguf(folder)
    path = shelf / f"{_digest(folder)}.gguf"
    if not path.is_file():
        shelf.mkdir(parents=True, exist_ok=True)
        part = shelf / f"{new_id()}.part"
        command = ("-m", "modelworks.serve.guard", sys.executable, "-m", __name__, str(folder), str(part))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, spec.model_name, start_new_session=True, env=dict(place.environment),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = await process.stdout.read()
            if await process.wait() != 0:
                raise EngineFailed(f"GGUF: {folder} was not written: {said[-1000:].decode('utf-8', 'replace').strip()}")
            part.replace(path)
        finally:
            if process.stdin is not None:  # cancelled: the guard ends the writing
                process.stdin.close()
            part.unlink(missing_ok=True)
        _prune(shelf)
    os.utime(path)
    return path


def _digest(folder: Path) -> str:
    """Of which files a folder has, and when they were written: reading gigabytes would take longer than serving."""
    found = sorted((path.name, stat.st_size, stat.st_mtime_ns) for path in folder.iterdir() if (stat := path.stat()))
    return hashlib.sha256(repr((str(folder.resolve()), found)).encode()).hexdigest()[:32]


def _prune(shelf: Path) -> None:
    # an engine that has one open goes on with it
    for old in sorted(shelf.glob("*.gguf"), key=lambda path: path.stat().st_mtime_ns, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)


def main(folder: str, file: str, name: str) -> None:
    """Write one file."""
    try:
        write_gguf(Path(folder), Path(file), "f16", name)
    except ModelworksError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main(*sys.argv[1:])
