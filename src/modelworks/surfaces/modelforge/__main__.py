"""Start the server as ModelForge's: `python -m modelworks.surfaces.modelforge`, on port 8000 unless told."""

import sys

from modelworks.server.launch import flag_parser, launch
from modelworks.web.persona import Persona

if __name__ == "__main__":
    flags = vars(flag_parser("modelforge", "Serve the ModelForge REST API.", 8000).parse_args())
    sys.exit(launch({flags.pop("port"): Persona.MODELFORGE}, flags))
