"""`regionclip prepare`: see regionclip_jax/commands/prepare.py."""

import sys

from regionclip_jax.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
