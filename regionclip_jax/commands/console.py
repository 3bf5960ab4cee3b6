"""The command `regionclip`: one subcommand for each command of the project."""

import importlib
import sys

from regionclip_jax import __version__

# Name to module and meaning; modules are imported when they are needed.
COMMANDS = {
    "train": ("train", "run a recipe that trains: pretraining, a localizer, a detector"),
    "evaluate": ("evaluate", "run a recipe that evaluates"),
    "detect": ("detect", "find objects by name in images"),
    "serve": ("serve", "serve a web page that finds objects by name in an image"),
    "embed regions": ("embed_regions", "write the embeddings of image regions"),
    "embed names": ("embed_names", "write the embeddings of names: a vocabulary"),
    "convert": ("convert", "turn PyTorch checkpoints into a model directory"),
    "export": ("export", "write a model for other programs: weights, or a program"),
    "push": ("push", "write a model directory to the Hugging Face Hub"),
    "concepts": ("concepts", "count the concepts that captions name"),
    "prepare": ("prepare", "write images and captions or boxes as shards for training"),
    "doctor": ("doctor", "check the installation and model directories"),
    "compile": ("compile", "compile a recipe for absent TPUs or GPUs and report its cost"),
}


def main() -> int:
    """Run the command that ``sys.argv`` names; return its exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    for num_words in (2, 1):
        name = " ".join(arguments[:num_words])
        if name in COMMANDS:
            module, _ = COMMANDS[name]
            # Usage lines and error messages print the name they find here.
            sys.argv = [f"regionclip {name}", *arguments[num_words:]]
            return importlib.import_module(f"regionclip_jax.commands.{module}").main()
    print(
        f"regionclip: found {arguments[0]!r}, expected one of: {', '.join(COMMANDS)}",
        file=sys.stderr,
    )
    return 2


def _usage() -> str:
    lines = [f"  {name:14} {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: regionclip COMMAND ...",
            "",
            *lines,
            "",
            "regionclip COMMAND --help explains one; regionclip --version prints the version.",
        )
    )
