"""`python -m gpg_vl` is `gpg-vl`; launchers such as torchrun and accelerate want a module."""

import sys

from gpg_vl.cli import main

sys.exit(main())
