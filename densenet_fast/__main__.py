"""`python -m densenet_fast`: the command `densenet-fast`."""

import sys

from .cli import main

sys.exit(main())
