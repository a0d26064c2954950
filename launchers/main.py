"""The Model Finetuning API's own start command: python main.py."""

import sys

from modelworks.surfaces.finetuning_api.__main__ import main

sys.exit(main())
