"""`regionclip convert`: see regionclip_jax/commands/convert.py."""

import sys

from regionclip_jax.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
