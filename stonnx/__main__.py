"""``python -m stonnx`` is the command ``stonnx``."""

import sys

from stonnx.cli import main

sys.exit(main())
