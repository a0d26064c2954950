"""Start the server as the Model Finetuning API's: its API on port 8000, its dashboard on port 5000."""

from __future__ import annotations

import argparse
import sys

from modelworks.server.launch import launch
from modelworks.web.persona import Persona


def main() -> int:
    parser = argparse.ArgumentParser(prog="main.py", description="Serve the Model Finetuning API and its dashboard.")
    parser.add_argument("--port", type=int, default=8000, help="port of the API (default: 8000)")
    parser.add_argument("--dashboard-port", type=int, default=5000, help="port of the dashboard (default: 5000)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    flags = vars(parser.parse_args())
    ports = {flags.pop("port"): Persona.FINETUNING_API, flags.pop("dashboard_port"): Persona.MERGING_API}
    return launch(ports, {key: value for key, value in flags.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
