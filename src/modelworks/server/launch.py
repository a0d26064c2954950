"""Starting the server as one of the five documents' programs: its ports, its persona, its flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from modelworks.app.wiring import open_app
from modelworks.core.config import load_settings
from modelworks.core.errors import ModelworksError
from modelworks.server import run
from modelworks.web.persona import Persona

KEY = "any other than loopback needs an API key (MODELWORKS_API_KEY) or --insecure-no-auth"


def flag_parser(prog: str, description: str, port: int) -> argparse.ArgumentParser:
    """The flags that every document's program has here; absent ones are not among what is parsed."""
    parser = argparse.ArgumentParser(prog=prog, description=description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=port, help=f"port to listen on (default: {port})")
    parser.add_argument("--host", help=f"address to listen on (default: 127.0.0.1); {KEY}")
    parser.add_argument("--insecure-no-auth", action="store_true", help="listen beyond loopback openly")
    return parser


def launch(ports: Mapping[int, Persona], flags: Mapping[str, object], on_ready: run.OnReady | None = None) -> int:
    """Serve on `ports`, the first of which is a must, until Ctrl-C; return the exit code. Blocks.

    Args:
        flags: settings, as the command line would give them.
        on_ready: called once the server listens; a result other than 0 ends it with that exit code.
    """
    try:
        settings = load_settings({**flags, "port": next(iter(ports))}).settings
        return run.serve(open_app(settings), settings, ports=ports, on_ready=on_ready)
    except ModelworksError as error:
        sys.stderr.write(f"modelworks: {error.message}\n")
        return run.EXIT_USAGE
