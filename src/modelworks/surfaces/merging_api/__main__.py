"""Start the server as the Model Merging API's: `python -m modelworks.surfaces.merging_api`, on port 5000."""

from __future__ import annotations

import argparse
import sys

from modelworks.server.launch import launch
from modelworks.web.persona import Persona


def main() -> int:
    parser = argparse.ArgumentParser(prog="run_api.py", description="Merge language models over HTTP.")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    flags = vars(parser.parse_args())
    port = flags.pop("port")
    return launch({port: Persona.MERGING_API}, {key: value for key, value in flags.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
