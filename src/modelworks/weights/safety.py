"""What a model folder may not contain: anything that could run code when loaded, or lead out of the folder."""

from __future__ import annotations

import json
from pathlib import Path

from modelworks.core.errors import Invalid, Problem, UnsafeFormat

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".mar"})
CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".ipynb", ".sh", ".exe"})
CODE_KEYS = ("auto_map", "_attn_implementation_internal", "custom_pipelines", "trust_remote_code")


def check_folder(folder: Path) -> None:
    """Refuse a model or adapter folder that could run code, judging by names and JSON only; nothing is loaded.

    Raises:
        UnsafeFormat: naming every such file and what to do about it.
    """
    problems = [problem for path in sorted(folder.rglob("*")) for problem in _problems(path, folder)]
    if problems:
        shown = "; ".join(str(problem) for problem in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UnsafeFormat(f"{folder} is refused: {shown}{more}", problems=tuple(problems))


def _problems(path: Path, folder: Path) -> list[Problem]:
    where = path.relative_to(folder).as_posix()
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return [Problem(where, "links out of the folder", "copy the file in")]
    if not path.is_file():
        return []
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return [Problem(where, "a pickle or an archive that can run code", "convert to safetensors and remove it")]
    if suffix in CODE:
        return [Problem(where, "code in a model folder is never run", "remove it; use a model of a built-in class")]
    return _code_keys(path, where) if suffix == ".json" and path.stat().st_size < 1 << 20 else []


def _code_keys(path: Path, where: str) -> list[Problem]:
    content = read_json(path)
    found = [key for key in CODE_KEYS if isinstance(content, dict) and content.get(key)]
    return [Problem(where, f"{key} names code to run", "remove the key; use a built-in class") for key in found]


def read_json(path: Path) -> object:
    """Read a JSON file of a model folder.

    Raises:
        Invalid: it is not JSON.
    """
    try:
        content: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{path}: not valid JSON ({error}); fetch it again") from None
    return content


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON file that must hold an object.

    Raises:
        Invalid: it is missing or holds something else.
    """
    if not path.is_file():
        raise Invalid(f"{path.parent} has no {path.name}; give a Hugging Face model or adapter folder")
    content = read_json(path)
    if not isinstance(content, dict):
        raise Invalid(f"{path}: expected a JSON object; fetch it again")
    return content
