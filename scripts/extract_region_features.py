"""`regionclip embed regions`: see regionclip_jax/commands/embed_regions.py."""

import sys

from regionclip_jax.commands.embed_regions import main

if __name__ == "__main__":
    sys.exit(main())
