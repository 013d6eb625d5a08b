"""``python -m kernelmux.cli``: the same as the ``kernelmux`` script."""

import sys

from kernelmux.cli import main

sys.exit(main())
