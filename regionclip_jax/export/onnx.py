"""Towers, region recognition and detection as ONNX, through jax2onnx (extra ``onnx``).

Four files: ``image.onnx`` embeds a whole image, ``text.onnx`` a text, ``regions.onnx`` embeds boxes
of an image and scores them, and ``detection.onnx`` detects, if the model has a localizer.
"""

import dataclasses
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.export.convertible import convertible
from regionclip_jax.export.onnx_operators import register_operators
from regionclip_jax.export.programs import (
    INPUTS,
    OUTPUTS,
    Program,
    check_canvas,
    constants_of,
    describe,
    describe_input,
    require_counts,
)
from regionclip_jax.extras import require_extra
from regionclip_jax.files import replace_text, replaced_file
from regionclip_jax.model import RegionCLIP
from regionclip_jax.models.concept_classifier import score_classes
from regionclip_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, kind_of
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.steps.predict_step import embed_boxes
from regionclip_jax.untrusted import reason

# "gather" has loops, and "matmul" transposes the maps of all regions between its two products.
COMPUTATION = {"roi_align_impl": "matmul_rows"}


def to_onnx(
    function: Callable, inputs: dict[str, jax.ShapeDtypeStruct], outputs: list[str]
) -> bytes:
    """Return the ONNX model of a function of arrays of fixed shapes.

    Args:
        function: its constants are weights of the model.
        inputs: shapes and types by name, in order.
        outputs: names, in order.

    Raises:
        MissingExtra: jax2onnx is not installed.
        RuntimeError: jax2onnx has no conversion of an operation.
    """
    require_extra("onnx", "--format onnx")
    # They warn of parts for libraries that no model here uses, and of values without a stated type.
    for library in ("jax2onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    jax2onnx = importlib.import_module("jax2onnx")
    register_operators()
    # A traced program has jax's own operations only. Otherwise jax2onnx replaces functions of flax
    # and jax.numpy while it traces, and those replacements take other arguments.
    with tracing_for("cpu"):
        traced = convertible(jax.make_jaxpr(function)(*inputs.values()))
    model = jax2onnx.to_onnx(
        jax.extend.core.jaxpr_as_fun(traced),
        [*inputs.values()],
        input_names=[*inputs],
        output_names=outputs,
    )
    return model.SerializeToString()


def write_onnx(
    model: RegionCLIP,
    vocabulary: Vocabulary | int,
    side: int,
    num_boxes: int,
    output: Path,
    detection: Program | None,
) -> tuple[Path, ...]:
    """Write the programs and ``model.json`` to the directory ``output``; return the paths.

    Args:
        vocabulary: classes of ``regions.onnx``; or the number of rows of an input of embeddings.
        side: of the canvas of ``regions.onnx``, in pixels.
        num_boxes: rows of its boxes.
        detection: of the same vocabulary, with ``COMPUTATION``; None: no ``detection.onnx``.

    Raises:
        MissingExtra: jax2onnx is not installed.
        CheckpointMismatch: jax2onnx cannot convert a tower, or ``output`` is a file.
        ValueError: a number that no program has.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointMismatch(f"--output: expected a directory, found the file {output}")
    rows = vocabulary if isinstance(vocabulary, int) else None
    require_counts(num_boxes=num_boxes, num_names=rows)
    parts = [_image_program(model), _text_program(model)]
    parts.append(_region_program(model, vocabulary, side, num_boxes))
    if detection is not None:
        parts.append(_detection_program(detection))
    paths = []
    for part in parts:
        try:
            content = to_onnx(part.call, part.inputs, [*part.outputs])
        # jax2onnx raises errors of several types for what it cannot convert.
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise CheckpointMismatch(
                f"{model.directory}: format onnx: {part.what}: jax2onnx cannot convert it "
                f"({reason(error)}); use --format stablehlo"
            ) from error
        paths.append(output / f"{part.name}.onnx")
        with replaced_file(paths[-1]) as file:
            file.write(content)
    paths.append(output / "model.json")
    replace_text(paths[-1], json.dumps(_describe(model, vocabulary, parts), indent=1) + "\n")
    return tuple(paths)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A program: file, part of the model for errors, function, shapes by name, constants."""

    name: str
    what: str
    call: Callable
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: dict[str, str]
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)


def _image_program(model: RegionCLIP) -> _Part:
    clip, variables = model.clip
    preprocessing = model.config.preprocessing
    side = preprocessing.resolution

    def embed(image: UInt8[Array, "H W 3"]) -> Float[Array, " D"]:
        pixels = normalize_images(image[None], jnp.array([[side, side]]), preprocessing)
        return clip.apply(variables, pixels, method=clip.encode_image)[0]

    kind = kind_of(model.config.image, IMAGE_TOWERS)
    inputs = {"image": jax.ShapeDtypeStruct((side, side, 3), jnp.uint8)}
    outputs = {"embedding": "of the whole image, not normalised"}
    return _Part("image", f"image tower of the kind {kind!r}", embed, inputs, outputs)


def _text_program(model: RegionCLIP) -> _Part:
    clip, variables = model.clip
    text = model.config.text

    def embed(tokens: Int[Array, " L"]) -> Float[Array, " D"]:
        return clip.apply(variables, tokens[None], method=clip.encode_text)[0]

    kind = kind_of(text, TEXT_TOWERS)
    inputs = {"tokens": jax.ShapeDtypeStruct((text.context_length,), jnp.int32)}
    outputs = {"embedding": "of the text, not normalised"}
    return _Part("text", f"text tower of the kind {kind!r}", embed, inputs, outputs)


def _region_program(
    model: RegionCLIP, vocabulary: Vocabulary | int, side: int, num_boxes: int
) -> _Part:
    clip, variables = model.clip
    settings = model.scores.detection
    check_canvas(side)

    def recognise(
        image: UInt8[Array, "H W 3"],
        size: Int[Array, "2"],
        boxes: Float[Array, "R 4"],
        classes: Float[Array, "C D"] | None = None,
    ) -> tuple[Float[Array, "R D"], Float[Array, "R C"]]:
        embeddings = embed_boxes(
            clip, variables, image[None], size[None], boxes[None], embed_from="features",
            regions_per_chunk=None, **COMPUTATION,
        )[0]  # fmt: skip
        mask = None
        if classes is None:
            assert isinstance(vocabulary, Vocabulary)
            classes = jnp.asarray(vocabulary.embeddings)
        else:
            mask = jnp.any(classes != 0, axis=1)
        return embeddings, score_classes(embeddings, classes, settings, mask)

    inputs = {
        "image": jax.ShapeDtypeStruct((side, side, 3), jnp.uint8),
        "size": jax.ShapeDtypeStruct((2,), jnp.int32),
        "boxes": jax.ShapeDtypeStruct((num_boxes, 4), jnp.float32),
    }
    if isinstance(vocabulary, int):
        shape = (vocabulary, model.config.embed_dim)
        inputs["embeddings"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    outputs = {
        "region_embeddings": "of the boxes, not normalised",
        "probabilities": "of the classes, for each box",
    }
    kind = kind_of(model.config.image, IMAGE_TOWERS)
    what = f"regions of the image tower of the kind {kind!r}"
    return _Part("regions", what, recognise, inputs, outputs)


def _detection_program(program: Program) -> _Part:
    constants = constants_of(program)
    return _Part("detection", "detection", program.call, program.inputs, OUTPUTS, constants)


_MEANINGS = INPUTS | {
    "image": "image.onnx: RGB at the resolution of the tower; the others: RGB on a canvas, the "
    "image in the top left corner, zeros elsewhere; the program normalises it",
    "boxes": "x1, y1, x2, y2 in pixels of the canvas",
    "tokens": "ids of the model's tokenizer",
}


def _describe(model: RegionCLIP, vocabulary: Vocabulary | int, parts: list[_Part]) -> dict:
    programs = [
        {
            "file": f"{part.name}.onnx",
            "inputs": [describe_input(name, one) for name, one in part.inputs.items()],
            "outputs": [{"name": n, "meaning": text} for n, text in part.outputs.items()],
            **part.constants,
        }
        for part in parts
    ]
    used = {name for part in parts for name in part.inputs}
    meanings = {name: text for name, text in _MEANINGS.items() if name in used}
    return describe(model, vocabulary) | {"programs": programs, "inputs": meanings}
