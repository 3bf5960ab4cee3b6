"""Conversion of embeddings and their names to a vocabulary."""

from pathlib import Path

import numpy as np

from regionclip_jax.artifacts import model_checkpoint
from regionclip_jax.artifacts.model_card import CheckpointMismatch, architecture_to_json
from regionclip_jax.artifacts.vocabulary import FILE_NAME, Vocabulary
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.report import origin_of
from regionclip_jax.text.names import read_names


def convert_vocabulary(
    source: str | Path, names_path: str | Path, output: str | Path
) -> Vocabulary:
    """Convert a bare ``[C, D]`` embedding file and its names to ``output/vocabulary.npz``.

    Args:
        source: file of one tensor, such as RegionCLIP's ``*_emb.pth``: raw, not normalised.
        names_path: file of names (``text.names``), in the order of the rows.
        output: a model directory with the same D; or a new directory for the vocabulary alone.

    Raises:
        CheckpointMismatch: the file holds more than one tensor, the names are no list of names, or
            a number differs.
    """
    source, names_path, output = Path(source), Path(names_path), Path(output)
    tensors = read_tensors(source)
    if len(tensors) != 1:
        raise CheckpointMismatch(
            f"{source}: expected one tensor of embeddings [C, D], found {len(tensors)} tensors "
            f"such as {list(tensors)[:3]}; a model's file goes to --source"
        )
    (embeddings,) = tensors.values()
    try:
        names = read_names(names_path)
    except ValueError as error:
        raise CheckpointMismatch(str(error)) from error
    if embeddings.ndim != 2 or len(names) != len(embeddings):
        raise CheckpointMismatch(
            f"{names_path}: expected one name for each row of {source.name} (shape "
            f"{embeddings.shape}), found {len(names)} names; give the list the embeddings were "
            "made from"
        )
    architecture = None
    if (output / "card.json").exists():
        card = model_checkpoint.load_card(output)
        architecture = architecture_to_json(card.architecture)
        if card.architecture.embed_dim != embeddings.shape[1]:
            raise CheckpointMismatch(
                f"{source}: expected embeddings of width D = {card.architecture.embed_dim}, that "
                f"of the model in {output} ({card.label}), found "
                f"{embeddings.shape[1]}; give embeddings of this model, or another --output"
            )
    encoder = {
        "architecture": architecture,
        "parameters_sha256": None,
        "source": origin_of(source),
    }
    vocabulary = Vocabulary(names, np.array(embeddings, np.float32, order="C"), (), encoder)
    vocabulary.save(output / FILE_NAME)
    return vocabulary
