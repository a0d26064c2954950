"""Compile the kernels while the package is installed or built, with a compiler that pip brings along."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "src" / "modelworks" / "core" / "kernels"
LIBRARY = KERNELS / "library.so"
COMPILER = [sys.executable, "-m", "ziglang", "cc"]
# A product and a sum are never one operation, so that every processor and a GPU give the same bits.
OPTIONS = ["-O3", "-std=c11", "-fPIC", "-fno-strict-aliasing", "-fno-sanitize=all", "-ffp-contract=off", "-Wall",
           "-Werror"]  # fmt: skip
# The generations of processors that have kernels of their own, by what `level.c` tells of the one at hand.
LEVELS = {1: ["-mcpu=x86_64"], 3: ["-mcpu=x86_64_v3"], 4: ["-mcpu=x86_64_v4", "-mprefer-vector-width=512"]}


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg] # hatchling's own
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's signature
        levels = LEVELS if platform.machine().lower() in {"x86_64", "amd64"} else {1: ["-mcpu=baseline"]}
        with tempfile.TemporaryDirectory() as folder:
            objects = []
            for source in sorted(KERNELS.glob("*.c")):
                for level, target in levels.items():
                    objects.append(f"{folder}/{source.stem}_{level}.o")
                    options = [*OPTIONS, *target, f"-DLEVEL={level}", "-c", "-o", objects[-1]]
                    subprocess.run([*COMPILER, *options, str(source)], check=True)
            subprocess.run([*COMPILER, "-shared", "-s", "-o", f"{folder}/library", *objects], check=True)
            partial = LIBRARY.with_suffix(".partial")
            partial.write_bytes(Path(folder, "library").read_bytes())
            partial.replace(LIBRARY)
        build_data["artifacts"].append(str(LIBRARY.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
