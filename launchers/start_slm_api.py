"""The SLM API's own start command: python start_slm_api.py [--port 8080] [--host 0.0.0.0] [--debug]."""

import sys

from modelworks.surfaces.slm.__main__ import main

sys.exit(main())
