"""Start the server as the Model Finetuning API's: its API on port 8000, its dashboard on port 5000."""

import sys

from modelworks.server.launch import flag_parser, launch
from modelworks.web.persona import Persona


def main() -> int:
    parser = flag_parser("main.py", "Serve the Model Finetuning API and its dashboard.", 8000)
    parser.add_argument("--dashboard-port", type=int, default=5000, help="port of the dashboard (default: 5000)")
    flags = vars(parser.parse_args())
    # The dashboard stands at the root of the merging port.
    ports = {flags.pop("port"): Persona.FINETUNING_API, flags.pop("dashboard_port"): Persona.MERGING_API}
    return launch(ports, flags)


if __name__ == "__main__":
    sys.exit(main())
