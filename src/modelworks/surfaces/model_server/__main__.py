"""Start the server as the Model Server's: `python -m modelworks.surfaces.model_server`, with its document's flags."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from modelworks.app.services import Services
from modelworks.core.errors import ModelworksError
from modelworks.server.launch import flag_parser, launch
from modelworks.web.persona import Persona


def main() -> int:
    parser = flag_parser("model_api.py", "Serve models and entries over /api/v1.", 9999)
    parser.add_argument("--model", metavar="NAME", help="model, adapter or entry to add at the start")
    parser.add_argument(
        "--device", nargs="+", metavar="DEVICE", help="one entity on each: cpu, cuda, cuda:N (default: one, auto)"
    )
    parser.add_argument(
        "--entries", metavar="DIR", help="folder with config.json and models/ (default: this folder, if it has both)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="calls an entry answers together (default: 8)")
    flags = vars(parser.parse_args())
    model, devices, port = flags.pop("model", None), flags.pop("device", None), flags.pop("port")
    if devices and not model:
        parser.error("--device needs --model NAME")
    if "entries" not in flags and _has_entries(Path.cwd()):
        flags["entries"] = str(Path.cwd())

    async def on_ready(services: Services) -> int:
        return await _add(services, model, devices or [None]) if model else 0

    return launch({port: Persona.MODEL_SERVER}, flags, on_ready)


async def _add(services: Services, model: str, devices: Sequence[str | None]) -> int:
    """One entity on each device; 1 if none could be had."""
    added = await asyncio.gather(*(_add_one(services, model, device) for device in devices))
    return 0 if any(added) else 1


async def _add_one(services: Services, model: str, device: str | None) -> bool:
    where = f"{model} on {device or 'auto'}"
    try:
        await services.gateway.add(model, device)
    except ModelworksError as error:
        sys.stderr.write(f"modelworks: {where}: {error.message}\n")
        return False
    sys.stderr.write(f"modelworks: {where}: ready\n")
    return True


def _has_entries(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "models" / "__init__.py").is_file()


if __name__ == "__main__":
    sys.exit(main())
