"""Start the server as the SLM API's: `python -m modelworks.surfaces.slm --port 8080`, with its document's flags."""

import sys

from modelworks.server.launch import flag_parser, launch
from modelworks.web.persona import Persona


def main() -> int:
    parser = flag_parser("start_slm_api.py", "Serve a small language model over /slm.", 5000)
    parser.add_argument("--debug", action="store_const", const="debug", dest="log_level", help="log everything")
    parser.add_argument("--base", dest="slm_base", metavar="NAME", help="base model; an adapter brings its own")
    parser.add_argument("--lora", dest="slm_adapter", metavar="NAME", help="adapter (default: the base's newest)")
    parser.add_argument("--cors-origin", choices=("null",), help="let pages opened as files generate, stream and ask")
    flags = vars(parser.parse_args())
    return launch({flags.pop("port"): Persona.SLM}, flags)


if __name__ == "__main__":
    sys.exit(main())
