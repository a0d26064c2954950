"""Start the server as ModelForge's: `python -m modelworks.surfaces.modelforge`, on port 8000 unless told."""

import argparse
import sys

from modelworks.server.launch import launch
from modelworks.web.persona import Persona

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="modelforge", description="Serve the ModelForge REST API.")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    sys.exit(launch({parser.parse_args().port: Persona.MODELFORGE}, {}))
