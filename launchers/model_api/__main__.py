"""`PYTHONPATH=launchers python -m model_api --model NAME --device cpu --port 9999`"""

import sys

from modelworks.surfaces.model_server.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
