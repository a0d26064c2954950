"""Start the server as the Model Server's: `python -m modelworks.surfaces.model_server`, with its document's flags."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from modelworks.app.services import Services
from modelworks.core.errors import ModelworksError
from modelworks.server.launch import launch
from modelworks.web.persona import Persona

KEY = "any other than loopback needs an API key (MODELWORKS_API_KEY) or --insecure-no-auth"


def main() -> int:
    parser = argparse.ArgumentParser(prog="model_api.py", description="Serve models and entries over /api/v1.")
    parser.add_argument("--model", metavar="NAME", help="model, adapter or entry to add at the start")
    parser.add_argument(
        "--device", nargs="+", metavar="DEVICE", help="one entity on each: cpu, cuda, cuda:N (default: one, auto)"
    )
    parser.add_argument("--port", type=int, default=9999, help="port to listen on (default: 9999)")
    parser.add_argument("--host", help=f"address to listen on (default: 127.0.0.1); {KEY}")
    parser.add_argument(
        "--entries", metavar="DIR", help="folder with config.json and models/ (default: this folder, if it has both)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="calls an entry answers together (default: 8)")
    parser.add_argument("--insecure-no-auth", action="store_const", const=True, help="listen beyond loopback openly")
    flags = vars(parser.parse_args())
    model, devices, port = flags.pop("model"), flags.pop("device"), flags.pop("port")
    if devices and not model:
        parser.error("--device needs --model NAME")
    flags["entries"] = flags["entries"] or _own_entries()

    async def on_ready(services: Services) -> int:
        return await _add(services, model, devices or [None]) if model else 0

    given = {key: value for key, value in flags.items() if value is not None}
    return launch({port: Persona.MODEL_SERVER}, given, on_ready)


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


def _own_entries() -> str | None:
    here = Path.cwd()
    return str(here) if (here / "config.json").is_file() and (here / "models" / "__init__.py").is_file() else None


if __name__ == "__main__":
    sys.exit(main())
