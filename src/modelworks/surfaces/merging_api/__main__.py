"""Start the server as the Model Merging API's: `python -m modelworks.surfaces.merging_api`, on port 5000."""

import sys

from modelworks.server.launch import flag_parser, launch
from modelworks.web.persona import Persona


def main() -> int:
    flags = vars(flag_parser("run_api.py", "Merge language models over HTTP.", 5000).parse_args())
    return launch({flags.pop("port"): Persona.MERGING_API}, flags)


if __name__ == "__main__":
    sys.exit(main())
