"""`regionclip doctor`: see regionclip_jax/commands/doctor.py."""

import sys

from regionclip_jax.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
