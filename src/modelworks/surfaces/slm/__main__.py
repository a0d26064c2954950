"""Start the server as the SLM API's: `python -m modelworks.surfaces.slm --port 8080`, with its document's flags."""

from __future__ import annotations

import argparse
import sys

from modelworks.server.launch import launch
from modelworks.web.persona import Persona

KEY = "any other than loopback needs an API key (MODELWORKS_API_KEY) or --insecure-no-auth"


def main() -> int:
    parser = argparse.ArgumentParser(prog="start_slm_api.py", description="Serve a small language model over /slm.")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--host", help=f"address to listen on (default: 127.0.0.1); {KEY}")
    parser.add_argument("--debug", action="store_const", const="debug", dest="log_level", help="log everything")
    parser.add_argument("--base", dest="slm_base", metavar="NAME", help="base model; an adapter brings its own")
    parser.add_argument("--lora", dest="slm_adapter", metavar="NAME", help="adapter (default: the base's newest)")
    parser.add_argument(
        "--cors-origin", choices=("null",), help="null: let pages opened as files call generate, stream and info"
    )
    parser.add_argument("--insecure-no-auth", action="store_const", const=True, help="listen beyond loopback openly")
    flags = vars(parser.parse_args())
    port = flags.pop("port")
    return launch({port: Persona.SLM}, {key: value for key, value in flags.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
