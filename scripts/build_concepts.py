"""`regionclip concepts`: see regionclip_jax/commands/concepts.py."""

import sys

from regionclip_jax.commands.concepts import main

if __name__ == "__main__":
    sys.exit(main())
