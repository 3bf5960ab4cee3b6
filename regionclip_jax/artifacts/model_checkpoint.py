"""A model directory: ``card.json`` and ``params/`` (Orbax), written whole or not at all.

The card marks a complete directory: it is removed first and written last. A directory without it is
refused. Orbax renames ``params`` into place only when it is complete. ``digests.json`` has the
SHA-256 of the card, of every file of ``params`` and of the tokenizer's file, if there is one
(``tokenizer_file``). Reading compares them before it uses a file. It
runs no code from the files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from regionclip_jax.artifacts import digests
from regionclip_jax.artifacts.card_fields import AGAIN
from regionclip_jax.artifacts.model_card import (
    FILE_NAME,
    CheckpointMismatch,
    LocalizerCard,
    ModelCard,
    read_card,
)
from regionclip_jax.artifacts.tokenizer_file import stored_files
from regionclip_jax.files import locked_folder, replace_text, replaced_file
from regionclip_jax.models.clip import init_variables
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.text.tokenizer import TokenizerSource
from regionclip_jax.untrusted import most_bytes, read_model_json, reason, short

PARAMS_NAME = "params"
_WRITERS = "scripts/convert_checkpoint.py, or the training job that exports it"
# Largest number of tensors that an error names.
MAX_NAMED = 10


@functools.lru_cache(maxsize=8)
def abstract_variables(config: CLIPConfig) -> dict:
    """Return a model's abstract variables (shape, dtype); callers share the tree."""
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))


def flatten(variables: dict) -> dict[str, object]:
    """Flatten nested dicts to ``{"params/visual/stem/conv1/kernel": leaf}``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: dict[str, object]) -> dict:
    """Invert ``flatten``; ``batch_stats`` is {} for a model without them."""
    return {"params": {}, "batch_stats": {}} | unflatten_dict(leaves, sep="/")


def variables_hash(variables: dict) -> str:
    """Return the SHA-256 of names, shapes and fp32 numbers: identifies a model of any origin."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(variables).items()):
        array = np.ascontiguousarray(leaf, dtype=np.float32)
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(array)
    return digest.hexdigest()


def save_variables(path: str | Path, variables: dict) -> None:
    """Write a tree of arrays with Orbax, replacing ``path``; every process must call it."""
    tree = {name: branch for name, branch in variables.items() if jax.tree.leaves(branch)}
    # Compression makes weights 7% smaller, and takes half as long again to write and to read.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(Path(path).absolute(), args=ocp.args.PyTreeSave(tree), force=True)


def load_variables(path: str | Path) -> dict:
    """Read a tree written by ``save_variables`` as numpy arrays, on any number of devices.

    Raises:
        CheckpointMismatch: there is no complete Orbax checkpoint at ``path``, its files are cut or
            changed, or they state more than ``most_bytes`` of them.
    """
    path = Path(path).absolute()
    # Orbax writes its metadata last.
    if not (path / "_METADATA").is_file():
        raise CheckpointMismatch(
            f"{path}: expected an Orbax checkpoint, found none that is complete; write it again "
            f"({_WRITERS})"
        )
    try:
        read_model_json(path / "_METADATA")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = checkpointer.metadata(path).item_metadata.tree
            _require_bounded(path, flatten(saved))
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=restore_args))
    except CheckpointMismatch:
        raise
    # Orbax and TensorStore raise errors of many types for damaged files.
    except Exception as error:
        raise CheckpointMismatch(
            f"{path}: expected an Orbax checkpoint, found one with damaged files "
            f"({reason(error)}); copy it again or write it again ({_WRITERS})"
        ) from error


def _require_bounded(path: Path, stated: dict[str, Any]) -> None:
    """Refuse arrays much larger than their files: missing parts of them are read as zeros."""
    num_bytes = 0
    for name, array in stated.items():
        chunk = (array.storage and array.storage.chunk_shape) or array.shape
        if any(part > max(whole, 1) for part, whole in zip(chunk, array.shape, strict=True)):
            raise CheckpointMismatch(
                f"{path}: {name}: expected parts of at most the shape {short(array.shape)}, found "
                f"{short(chunk)}; copy it again or write it again ({_WRITERS})"
            )
        num_bytes += math.prod(array.shape) * np.dtype(array.dtype).itemsize
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if num_bytes > most_bytes(stored):
        raise CheckpointMismatch(
            f"{path}: expected arrays of at most {most_bytes(stored):,} bytes in files of "
            f"{stored:,}, found {num_bytes:,}; copy it again or write it again ({_WRITERS})"
        )


def traced(trace: Callable[[Any], dict], architecture: Any, where: str | Path) -> dict:
    """Return ``trace(architecture)``, the abstract variables of a card or a checkpoint.

    Raises:
        CheckpointMismatch: no model can be built from the sizes; the message begins with ``where``.
    """
    try:
        return trace(architecture)
    # Sizes that do not fit each other fail at any place of a model.
    except Exception as error:
        raise CheckpointMismatch(
            f"{where}: no model has the architecture {architecture} ({reason(error)}); {AGAIN}"
        ) from error


def save_model(
    directory: str | Path,
    variables: dict,
    card: ModelCard,
    tokenizer: TokenizerSource | None = None,
) -> None:
    """Write a model directory; replace an existing model, keep other files.

    Every process must call it; when it returns, all of them can read the model.

    Args:
        variables: ``{"params", "batch_stats"}`` of ``models.clip``, whole; stored as fp32.
        tokenizer: of the model, if it reads a file, which is copied.

    Raises:
        CheckpointMismatch: the variables do not fit ``card.architecture``, or its tokenizer reads a
            file that is not given.
    """
    expected = abstract_variables(card.architecture)
    files = stored_files(tokenizer, card.architecture.text)
    save_sealed(Path(directory), variables, expected, card, files)


def save_sealed(
    directory: Path,
    variables: dict,
    expected: dict,
    card: ModelCard | LocalizerCard,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write ``params/``, other files, digests, and then the card of a model or of a part of one.

    Args:
        variables: ``{"params", "batch_stats"}``.
        expected: a tree of the required shapes.
        files: content of further files by name.

    Raises:
        CheckpointMismatch: as ``require_sound``; nothing is written.
        FileExistsError: another process writes the directory.
    """
    leaves = flatten(variables)
    # The checksum of the place that the numbers may come from does not count.
    card = dataclasses.replace(card, parameters_sha256=None)
    require_sound(directory, leaves, expected, card)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked_folder(directory))
        card_path = directory / FILE_NAME
        if jax.process_index() == 0:
            card_path.unlink(missing_ok=True)
        as_fp32 = {
            path: leaf if leaf.dtype == np.float32 else leaf.astype(np.float32)
            for path, leaf in leaves.items()
        }
        save_variables(directory / PARAMS_NAME, unflatten(as_fp32))
        if jax.process_index() == 0:
            card = dataclasses.replace(card, parameters_sha256=variables_hash(as_fp32))
            for name, content in (files or {}).items():
                with replaced_file(directory / name) as file:
                    file.write(content)
            written = [path for path in (directory / PARAMS_NAME).rglob("*") if path.is_file()]
            written += [directory / name for name in files or {}]
            digests.write_digests(directory, written, texts={FILE_NAME: card.to_json()})
            replace_text(card_path, card.to_json())
    barrier(f"wrote {directory}")


def load_card(directory: str | Path) -> ModelCard:
    """Read the card, without the arrays.

    Raises:
        CheckpointMismatch: ``directory`` is not a (complete) model directory, or the card was
            changed after it was written.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{directory}: expected a model directory with {FILE_NAME}, found "
            f"{describe_folder(Path(directory))}; make one with scripts/convert_checkpoint.py or "
            "a training job (a directory without a card was never finished: write it again)"
        )
    require_intact(Path(directory), {FILE_NAME})
    return ModelCard.from_json(read_card(path), path)


def load_model(directory: str | Path) -> tuple[dict, ModelCard]:
    """Read a model directory.

    Returns:
        ``{"params", "batch_stats"}`` as nested dicts of fp32 numpy arrays, and the card.

    Raises:
        CheckpointMismatch: there is no complete model, or its arrays do not fit its card.
    """
    card = load_card(directory)
    return load_sealed(Path(directory), abstract_variables, card), card


def load_sealed(
    directory: Path, trace: Callable[[Any], dict], card: ModelCard | LocalizerCard
) -> dict:
    """Read the numpy arrays that ``save_sealed`` wrote.

    Args:
        trace: returns the tree of the required shapes of an architecture. It runs while the files
            are read, which takes as long.
        card: the directory's card.

    Raises:
        CheckpointMismatch: incomplete or damaged files, or as ``require_sound``.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(_load_intact, directory)
        expected = traced(trace, card.architecture, directory / FILE_NAME)
        loaded, is_intact = reading.result()
    if is_intact:
        # Files as they were written hold the numbers that were written.
        card = dataclasses.replace(card, parameters_sha256=None)
    leaves = flatten(loaded)
    require_sound(directory, leaves, expected, card)
    return unflatten(leaves)


def _load_intact(directory: Path) -> tuple[dict, bool]:
    is_intact = require_intact(directory)
    return load_variables(directory / PARAMS_NAME), is_intact


def require_intact(directory: Path, names: set[str] | None = None) -> bool:
    """Compare files with their digests.

    Args:
        directory: written by ``save_sealed``.
        names: relative names of the files; None checks all.

    Returns:
        False for a directory of an older version, which has no digests.

    Raises:
        CheckpointMismatch: a file is missing or was changed after it was written.
    """
    damage = digests.find_damage(directory, names=names)
    if damage:
        raise CheckpointMismatch(
            f"{damage[0]}{f' (and {len(damage) - 1} more files)' if damage[1:] else ''}; copy the "
            f"directory again, or convert or export it again; after an edit by hand: delete "
            f"{directory / digests.FILE_NAME}"
        )
    return damage is not None


def require_sound(
    directory: Path, leaves: dict, expected: dict, card: ModelCard | LocalizerCard
) -> None:
    """Check weights before they are written, and whenever they are read.

    Args:
        directory: of the model or of a part of one, for errors.
        leaves: arrays by path.
        expected: a tree of the required shapes.
        card: with the checksum of the arrays; cards of older versions have none.

    Raises:
        CheckpointMismatch: other names or shapes than expected, a number that is not finite, or
            other numbers than those that were written. The message names tensors and parts.
    """
    _require_shapes(directory, leaves, expected, card)
    problems = [
        f"{path} ({_part(path, card)}): {count:,} of {leaf.size:,} numbers are not finite"
        for path, leaf in leaves.items()
        if (count := leaf.size - int(np.isfinite(np.asarray(leaf, np.float32)).sum()))
    ]
    if problems:
        raise CheckpointMismatch(
            f"{directory}: {len(problems)} tensors of {card.label} hold NaN or infinite "
            "numbers:\n  " + "\n  ".join(summarise(problems)) + "\nconvert or download the file "
            "again, or export the model from an earlier checkpoint of its run"
        )
    written = card.parameters_sha256
    if written is not None and (found := variables_hash(leaves)) != written:
        raise CheckpointMismatch(
            f"{directory}: the numbers of {card.label} have the SHA-256 {found[:12]}, but "
            f"{written[:12]} when they were written; copy the directory again, or convert or "
            "export the model again"
        )


# Names for users of the first branches of parameters; a localizer's are all the localizer's.
_PARTS = {
    "visual": "image tower",
    "text": "text tower",
    "logit_scale": "temperature of the model",
    "logit_bias": "temperature of the model",
    "box_head": "box head",
    "mask_head": "mask head",
    "pyramid_heads": "feature pyramid",
}


def _part(path: str, card: ModelCard | LocalizerCard) -> str:
    return _PARTS.get(path.split("/")[1], card.label)


def _require_shapes(
    directory: Path, leaves: dict, expected: dict, card: ModelCard | LocalizerCard
) -> None:
    expected = {path: leaf.shape for path, leaf in flatten(expected).items()}
    found = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    problems = [
        f"{path}: missing, expected {expected[path]}"
        for path in sorted(expected.keys() - found.keys())
    ]
    problems += [
        f"{path}: not part of the model" for path in sorted(found.keys() - expected.keys())
    ]
    problems += [
        f"{path}: expected shape {expected[path]}, found {found[path]}"
        for path in sorted(expected.keys() & found.keys())
        if expected[path] != found[path]
    ]
    if problems:
        raise CheckpointMismatch(
            f"{directory}: {len(problems)} variables do not fit the architecture "
            f"{card.label}:\n  "
            + "\n  ".join(summarise(problems))
            + "\nconvert or export the model again, with the card of its own architecture"
        )


def summarise(lines: list[str]) -> list[str]:
    """Return the first ``MAX_NAMED`` lines, and a count of the others."""
    more = len(lines) - MAX_NAMED
    return lines[:MAX_NAMED] + ([f"... and {more} more"] if more > 0 else [])


def describe_folder(directory: Path) -> str:
    """Describe the content of a directory, for errors."""
    if not directory.is_dir():
        return "no such directory"
    names = sorted(path.name for path in directory.iterdir())
    return f"a directory with {names[:5]}" if names else "an empty directory"
