"""Write a model directory to the Hugging Face Hub, with a page that states its facts.

    regionclip push models/rn50 owner/name
    regionclip push workdir/scenes/model owner/name --private --license apache-2.0

Needs the extra hub, and a login: `hf auth login`. Model files and README.md are written as one
commit. A README.md in the directory is used as it is. regionclip_jax.load("hf://owner/name") reads
the model.
"""

import argparse

from regionclip_jax.failures import one_line
from regionclip_jax.hub import push_to_hub
from regionclip_jax.reporting.progress import log_own_progress


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="model directory")
    parser.add_argument(
        "name", metavar="OWNER/NAME", help="of the repository, perhaps with @BRANCH"
    )
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--license", metavar="NAME", help="of the weights, such as apache-2.0")
    options = parser.parse_args(arguments)
    log_own_progress()
    address = push_to_hub(
        options.model, options.name, private=options.private, licence=options.license
    )
    print(f"written: {address}")
    return 0
