"""``vocabulary.npz``: names of concepts or classes, their text embeddings, and the encoder.

Embeddings are raw text features averaged over the templates, not normalised
(docs/reference/text.md#concept-embeddings); the consumer normalises. ``encoder`` is
``{"architecture": as in a model card, "parameters_sha256": hash of the text tower}``; embeddings
imported from a bare file have the hash None.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float

from regionclip_jax.artifacts.model_card import (
    CheckpointMismatch,
    architecture_from_json,
    architecture_to_json,
)
from regionclip_jax.artifacts.zip_archives import read_npz
from regionclip_jax.files import replaced_file
from regionclip_jax.models.presets import preset_name
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.untrusted import parse_json, short

FILE_NAME = "vocabulary.npz"
# Name of an array, its kinds of NumPy types, and its number of dimensions.
_TYPES = (("names", "U", 1), ("embeddings", "fiu", 2), ("templates", "U", 1), ("encoder", "U", 0))
_FIELDS = [name for name, _, _ in _TYPES]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """C names with raw embeddings ``[C, D]``, the prompt templates and the encoder.

    Raises:
        CheckpointMismatch: names and embeddings differ in number, a name is empty or occurs twice,
            or an embedding is not finite.
    """

    names: tuple[str, ...]
    embeddings: Float[np.ndarray, "C D"]
    templates: tuple[str, ...]
    encoder: dict

    def __post_init__(self):
        if self.embeddings.ndim != 2 or len(self.names) != len(self.embeddings):
            raise CheckpointMismatch(
                f"vocabulary: expected one embedding a name ([{len(self.names)}, D]), found the "
                f"shape {self.embeddings.shape}; give the list of names the embeddings were made "
                "from"
            )
        seen = set()
        for row, name in enumerate(self.names):
            if not name or name in seen:
                raise CheckpointMismatch(
                    f"vocabulary: name {row} is {name!r}: expected names that are not empty and "
                    "differ; correct the list of names"
                )
            seen.add(name)
        finite = np.isfinite(self.embeddings).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise CheckpointMismatch(
                f"vocabulary: the embedding of {self.names[row]!r} (row {row}) is not finite; "
                "embed the names again"
            )

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all."""
        with replaced_file(path) as file:
            np.savez(
                file,
                names=np.array(self.names, dtype=str),
                embeddings=self.embeddings.astype(np.float32),
                templates=np.array(self.templates, dtype=str),
                encoder=np.array(json.dumps(self.encoder)),
            )

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read and check a vocabulary; run no code from the file.

        Warn of names with the same embedding, such as names that were cut to the same tokens.

        Raises:
            CheckpointMismatch: the file is missing, damaged, or lacks a field.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointMismatch(
                f"{path}: expected a vocabulary, found no file; a pretraining run makes "
                "one, or scripts/convert_checkpoint.py --vocabulary"
            )
        fields = read_npz(path, _FIELDS)
        for name, kinds, num_dims in _TYPES:
            array = fields[name]
            # Templates that are none have the type of numbers in older files.
            if array.ndim != num_dims or (array.size and array.dtype.kind not in kinds):
                raise CheckpointMismatch(
                    f"{path}: {name}: expected {num_dims} dimensions of type {' or '.join(kinds)}, "
                    f"found the shape {array.shape} of type {array.dtype}; make it again"
                )
        try:
            vocabulary = cls(
                tuple(fields["names"].tolist()),
                fields["embeddings"].astype(np.float32),
                tuple(map(str, fields["templates"].tolist())),
                _read_encoder(fields["encoder"].item()),
            )
        except ValueError as error:
            raise CheckpointMismatch(f"{path}: {error}; make it again") from error
        vocabulary._warn_of_equal_rows(path)
        return vocabulary

    def _warn_of_equal_rows(self, path: Path) -> None:
        first: dict[bytes, str] = {}
        pairs = []
        for name, row in zip(self.names, self.embeddings, strict=True):
            before = first.setdefault(row.tobytes(), name)
            if before != name:
                pairs.append(f"{before[:60]!r} and {name[:60]!r}")
        if pairs:
            logging.warning(
                "%s: %d names have the embedding of another name, and no image can tell them "
                "apart: %s%s",
                path, len(pairs), ", ".join(pairs[:5]), ", ..." if len(pairs) > 5 else "",
            )  # fmt: skip


def _read_encoder(text: str) -> dict:
    encoder = parse_json(text, "encoder")
    if (
        isinstance(encoder, dict)
        and isinstance(encoder.get("architecture"), dict | None)
        and isinstance(encoder.get("parameters_sha256"), str | None)
    ):
        return encoder
    raise ValueError(f"encoder: expected architecture and hash, found {short(encoder)}")


def text_tower_hash(params: dict) -> str:
    """Return the SHA-256 of the text tower's names, shapes and fp32 numbers, in order of names.

    Args:
        params: of a CLIP; only its branch ``text`` is hashed, so a student and a teacher with the
            same frozen text tower have the same hash.
    """
    digest = hashlib.sha256()

    def update(name: str, value):
        if isinstance(value, dict):
            for key in sorted(value):
                update(f"{name}/{key}", value[key])
            return
        array = np.ascontiguousarray(value, dtype=np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())

    update("text", params["text"])
    return digest.hexdigest()


def describe_encoder(config: CLIPConfig, params: dict) -> dict:
    """Return the ``encoder`` entry for vocabularies of this text tower."""
    return {
        "architecture": architecture_to_json(config),
        "parameters_sha256": text_tower_hash(params),
    }


def require_matching(vocabulary: Vocabulary, encoder: dict) -> None:
    """Check that a vocabulary comes from the text tower of the model that uses it.

    The hashes are compared. An imported vocabulary has none, so only the width D is compared.

    Args:
        encoder: ``describe_encoder`` of the model.

    Raises:
        CheckpointMismatch: they differ; the message describes both.
    """
    made_by, dim = vocabulary.encoder, vocabulary.embeddings.shape[1]
    imported = made_by.get("parameters_sha256") is None
    same_tower = imported or made_by["parameters_sha256"] == encoder["parameters_sha256"]
    if dim != encoder["architecture"]["embed_dim"] or not same_tower:
        raise CheckpointMismatch(
            f"vocabulary of {len(vocabulary.names)} names with {dim}-dimensional embeddings, made "
            f"by {_describe(made_by)}, does not fit the model: {_describe(encoder)}; embed its "
            "names again with this model"
        )


def require_same_names(student: Vocabulary, teacher: Vocabulary) -> None:
    """Refuse pools whose rows are not the same names: distributions over them do not compare.

    Raises:
        CheckpointMismatch: a row differs, or the number of rows; the message has both.
    """
    if student.names == teacher.names:
        return
    numbers = f"{len(student.names)} and {len(teacher.names)} names"
    pairs = zip(student.names, teacher.names, strict=False)
    for row, (own, other) in enumerate(pairs):
        if own != other:
            numbers = f"{numbers}, in row {row} {short(own)} and {short(other)}"
            break
    raise CheckpointMismatch(
        f"the concept pools of student and teacher hold {numbers}: expected the same names in the "
        f"same order; student: {_describe(student.encoder)}; teacher: "
        f"{_describe(teacher.encoder)}; embed the names of one list with both"
    )


def _describe(encoder: dict) -> str:
    architecture = encoder.get("architecture")
    if architecture is None:
        name = "an unknown text tower"
    else:
        config = architecture_from_json(architecture, "vocabulary: architecture")
        width = f"text width {config.text.width}, D {config.embed_dim}"
        name = f"{preset_name(config) or 'a CLIP of no preset'} ({width})"
    sha256 = encoder.get("parameters_sha256")
    return f"{name}, parameters {sha256[:12] if sha256 else 'unknown'}"
