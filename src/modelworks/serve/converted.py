"""A model in the format of another program, in float16: written once, kept as long as the model is the same.

`python -m modelworks.serve.converted FORMAT FOLDER PATH NAME PROGRAM` writes one, since that needs torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import shutil
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from modelworks.core.errors import ModelworksError, Unsupported
from modelworks.core.generation import EngineFailed
from modelworks.core.ids import new_id
from modelworks.serve.engine import EngineSpec, Place
from modelworks.weights.gguf_export import check_gguf, write_gguf

# Of models that were served last; each is as large as its model.
KEPT = 4
_DAY = 86_400


async def gguf_of(spec: EngineSpec, place: Place) -> Path:
    """The GGUF file that llama.cpp opens of a model folder, beside the logs of the engines.

    Raises:
        Unsupported: this architecture cannot be written, or the program cannot open it.
        EngineFailed: why it could not be written.
    """
    return await _kept("gguf", spec, place)


async def openvino_of(spec: EngineSpec, place: Place) -> Path:
    """The folder that OpenVINO opens. Raises as `gguf_of` does."""
    return await _kept("openvino", spec, place)


async def _kept(form: str, spec: EngineSpec, place: Place) -> Path:
    folder, shelf = Path(spec.model_folder), place.log_path.parent / form
    check_gguf(folder)
    path = shelf / f"{_digest(folder)}.{form}"
    if not path.exists():
        shelf.mkdir(parents=True, exist_ok=True)
        part = shelf / f"{new_id()}.part"
        command = ("-m", "modelworks.serve.guard", sys.executable, "-m", __name__, form, str(folder), str(part))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, spec.model_name, spec.program or "", start_new_session=True,
            env=dict(place.environment), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = (await process.stdout.read()).decode("utf-8", "replace").strip()
            status = await process.wait()
            if status == os.EX_DATAERR:
                raise Unsupported(said.splitlines()[-1])
            if status != 0:
                raise EngineFailed(f"{form}: {folder} was not written: {said[-1000:]}")
            if not path.exists():  # another replica's may be
                part.replace(path)
        finally:
            if process.stdin is not None:  # cancelled: the guard ends the writing
                process.stdin.close()
            _remove(part)
        _prune(shelf)
    os.utime(path)
    return path


def _digest(folder: Path) -> str:
    """Of which files a folder has, and when they were written: reading gigabytes would take longer than serving."""
    found = sorted((path.name, stat.st_size, stat.st_mtime_ns) for path in folder.iterdir() if (stat := path.stat()))
    return hashlib.sha256(repr((str(folder.resolve()), found)).encode()).hexdigest()[:32]


def _prune(shelf: Path) -> None:
    """Keep the last ones, and nothing that a killed server left half-written."""
    stood = {path: path.stat().st_mtime for path in shelf.iterdir()}
    whole = sorted((path for path in stood if path.suffix != ".part"), key=stood.__getitem__, reverse=True)
    dead = (path for path, at in stood.items() if path.suffix == ".part" and at < time.time() - _DAY)
    # an engine that has one open goes on with it
    for old in (*whole[KEPT:], *dead):
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_openvino(folder: Path, part: Path, name: str) -> None:
    """From GGUF, with OpenVINO's own reader. Opened as GGUF, weights are made float32 and take twice the memory."""
    genai = importlib.import_module("openvino_genai")
    part.mkdir()
    file = part / "model.gguf"
    write_gguf(folder, file, "f16", name)
    try:
        # beside the file that it opens
        genai.ContinuousBatchingPipeline(str(file), genai.SchedulerConfig(), "CPU", {"enable_save_ov_model": True})
    except RuntimeError as error:
        raise Unsupported(f"OpenVINO cannot open {name}: {' '.join(str(error).split())}") from error
    file.unlink()
    _keep_compressed(part / "openvino_model.xml")


def _keep_compressed(graph: Path) -> None:
    """Mark the conversions of weights from float16 as OpenVINO's exporter does: those stay in float16.

    Its reader of GGUF marks none, and what is not marked is made float32 when the model is opened.
    """
    tree = ElementTree.parse(graph)
    layers = {layer.get("id"): layer for layer in tree.iter("layer")}
    for edge in tree.iter("edge"):
        weight, taker = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        told = weight.find("data")
        compressed = weight.get("type") == "Const" and told is not None and told.get("element_type") == "f16"
        if compressed and taker.get("type") == "Convert" and taker.find("rt_info") is None:
            marks = ElementTree.SubElement(taker, "rt_info")
            ElementTree.SubElement(marks, "attribute", name="decompression", version="0")
    tree.write(graph)


def main(form: str, folder: str, part: str, name: str, program: str) -> None:
    """Write one."""
    if program:
        sys.path.append(program)
    try:
        if form == "openvino":
            _write_openvino(Path(folder), Path(part), name)
        else:
            write_gguf(Path(folder), Path(part), "f16", name)
    except ModelworksError as error:
        sys.stderr.write(error.message)
        sys.exit(os.EX_DATAERR if isinstance(error, Unsupported) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
