"""Start the server as ModelForge's: `python -m modelworks.surfaces.modelforge`, on port 8000."""

import sys

from modelworks.server.launch import launch
from modelworks.web.persona import Persona

if __name__ == "__main__":
    sys.exit(launch({8000: Persona.MODELFORGE}, {}))
