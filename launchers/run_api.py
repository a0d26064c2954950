"""The Model Merging API's own start command: python run_api.py, on port 5000."""

import sys

from modelworks.surfaces.merging_api.__main__ import main

sys.exit(main())
