"""`regionclip embed names`: see regionclip_jax/commands/embed_names.py."""

import sys

from regionclip_jax.commands.embed_names import main

if __name__ == "__main__":
    sys.exit(main())
