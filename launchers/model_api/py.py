"""`PYTHONPATH=launchers python -m model_api.py --model NAME`, as the document writes it."""

import sys

from modelworks.surfaces.model_server.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
