"""`regionclip detect`: see regionclip_jax/commands/detect.py."""

import sys

from regionclip_jax.commands.detect import main

if __name__ == "__main__":
    sys.exit(main())
