"""Report installed versions and the content of model directories, and run their self-checks.

    regionclip doctor checkpoints/clip_rn50

The last lines say that all is well, or name the problems and remedies; the exit status is 0 or 1.
"""

import argparse
import importlib.metadata
import platform
from pathlib import Path

import regionclip_jax
from regionclip_jax import self_check
from regionclip_jax.artifacts.detector_heads import has_heads, load_heads
from regionclip_jax.artifacts.localizer_checkpoint import FOLDER_NAME, load_localizer
from regionclip_jax.artifacts.model_card import FILE_NAME as CARD_NAME
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model, variables_hash
from regionclip_jax.artifacts.score_settings import complete_scores, scores_to_json
from regionclip_jax.artifacts.vocabulary import (
    FILE_NAME,
    Vocabulary,
    describe_encoder,
    require_matching,
)
from regionclip_jax.assembly.devices import DeviceError, describe_devices
from regionclip_jax.commands.options import add_require_platform, start

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="*", type=Path, help="model directories to examine")
    parser.add_argument(
        "--write", action="store_true", help="record the present scores as the expected ones"
    )
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    print(f"python {platform.python_version()}, regionclip_jax {regionclip_jax.__version__}")
    print(", ".join(versions))
    try:
        start(options)
    except DeviceError as error:
        print(f"\nwrong: {error}")
        return 1
    print(f"devices: {describe_devices()}")
    wrong = []
    for directory in options.directory:
        print(f"\n{directory}")
        try:
            examine(directory, write=options.write)
        except (CheckpointMismatch, OSError) as error:
            wrong.append(str(error))
    print("\n" + ("\n".join(f"wrong: {problem}" for problem in wrong) or "all is well"))
    return 1 if wrong else 0


def examine(directory: Path, *, write: bool) -> None:
    """Print the content of a model directory.

    Raises:
        CheckpointMismatch: a file is missing, damaged or does not match.
    """
    localizer_card = None
    if (directory / FOLDER_NAME).exists():
        localizer, localizer_card = load_localizer(directory)
        print(f"  {localizer_card.label}, {_count(localizer)}, from {localizer_card.source}")
        if not (directory / CARD_NAME).exists():
            print("  a localizer alone: no CLIP, nothing else to examine")
            return
    variables, card = load_model(directory)
    print(f"  model: {card.label}, {_count(variables)}, from {card.source}")
    print(f"  SHA-256 of its parameters: {variables_hash(variables)}")
    if card.parameters_sha256 is None:
        print("  its card has no SHA-256 to compare with: an older version wrote it")
    if has_heads(directory):
        heads, heads_card = load_heads(directory)
        print(f"  {heads_card.label}, {_count(heads)}, from {heads_card.source}")
    architecture = localizer_card and localizer_card.architecture
    scores = complete_scores(card.scores, variables["params"], architecture)
    print(f"  scores: {scores_to_json(scores)}")
    if (directory / FILE_NAME).exists():
        vocabulary = Vocabulary.load(directory / FILE_NAME)
        require_matching(vocabulary, describe_encoder(card.architecture, variables["params"]))
        print(f"  vocabulary: {len(vocabulary.names)} names, such as {vocabulary.names[:3]}")
    if write:
        print(f"  self-check written: {self_check.write(directory)}")
    if not (directory / self_check.FILE_NAME).exists():
        print("  self-check: none was written; --write makes one")
        return
    result = self_check.compare(directory)
    print(f"  self-check: cosines and scores differ by {result.difference:.2g} at most")
    if not result.passed:
        raise CheckpointMismatch(
            f"{directory}: a drawn image has other scores than when the model was written "
            f"(largest difference {result.difference:.2g}, expected at most "
            f"{self_check.TOLERANCE}); convert or copy the model again, and if that changes "
            "nothing, this machine or these versions compute wrongly"
        )


def _count(variables: dict) -> str:
    leaves = flatten(variables)
    return f"{len(leaves)} tensors, {sum(leaf.size for leaf in leaves.values()):,} numbers"
