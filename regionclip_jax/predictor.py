"""Predictions of a model directory: its parts on the devices, batches by canvas, programs."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.artifacts.detector_heads import has_heads, load_heads, open_pyramid
from regionclip_jax.artifacts.localizer_checkpoint import FOLDER_NAME, load_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.data.loading.buckets import padded_rows
from regionclip_jax.data.loading.letterbox import Letterbox
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.vit_pyramid import PyramidHeads
from regionclip_jax.ops import arguments  # noqa: F401  (settings are arguments of jit)
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    Prediction,
    given_boxes,
    make_predict_step,
    proposals_of,
)
from regionclip_jax.steps.pyramid_predict_step import make_pyramid_predict_step
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.names import names_among

# Programs are compiled for this count of classes and its doubles.
FEWEST_CLASSES = 16
# Least recently used programs beyond this number are dropped from memory.
_MOST_PROGRAMS = 8


class Predictor:
    """Towers, localizer and heads of a model directory, and the programs that predict with them.

    Threads may share one.

    Attributes:
        model: module of both towers.
        variables: of the towers, on the devices.
        localizer: None if the directory has none.
        has_proposals: True if the model can propose regions.

    Args:
        directory: has the localizer and the heads.
        model, variables: as the attributes.
        letterbox: of users' images.
        batch_size: number of images of one canvas that are processed at once.
    """

    def __init__(
        self,
        directory: Path,
        model: CLIP,
        variables: dict,
        letterbox: Letterbox,
        batch_size: int,
    ):
        self.model, self.variables = model, variables
        self._directory, self._letterbox, self._batch_size = directory, letterbox, batch_size
        self.localizer: Localizer | None = None
        self._localizer_variables = None
        if (directory / FOLDER_NAME).exists():
            localizer, card = load_localizer(directory)
            self.localizer = Localizer(card.architecture, model.dtype)
            self._localizer_variables = jax.device_put(localizer)
        self._box_head = None
        # Module of the heads on a pyramid, if the directory has such a detector.
        self._pyramid: PyramidHeads | None = None
        self._pyramid_variables = None
        self._trained_names: Sequence[str] = ()
        if has_heads(directory):
            heads, heads_card = load_heads(directory)
            pyramid = open_pyramid(heads, heads_card, model.config, directory, model.dtype)
            if pyramid is None:
                self._box_head = jax.device_put({"params": heads["params"]["box_head"]})
            else:
                self._pyramid, own = pyramid
                self._pyramid_variables = jax.device_put(own)
                self._trained_names = heads_card.source.get("classes", ())
        self.has_proposals = self.localizer is not None or self._pyramid is not None
        # Threads that ask for the same program wait for one of them.
        self._making = threading.Lock()
        self._program = functools.lru_cache(_MOST_PROGRAMS)(self._build_program)

    def require_localizer(self) -> Localizer:
        """Return the localizer.

        Raises:
            CheckpointMismatch: the model has none.
        """
        if self.localizer is None:
            raise CheckpointMismatch(
                f"{self._directory}: has no localizer to find regions with; add one with "
                "scripts/convert_checkpoint.py --localizer FILE_OR_DIR, or give boxes"
            )
        return self.localizer

    def run(self, images, boxes, settings, proposals, embeddings, names, part: str) -> list[tuple]:
        """Predict for images of any size.

        Args:
            images: as ``Letterbox.load`` takes them.
            boxes: of each image, in its pixels; None for proposals.
            settings: ``DetectionSettings``.
            proposals: ``ProposalSettings``; None for given boxes.
            embeddings, names: of the classes.
            part: field of ``Prediction`` to compute.

        Returns:
            (resized image, that part for its batch, row of the image), in the given order.
        """
        with self._making:
            program = self._program(jax.tree.structure((settings, proposals)), part)
        classes, mask = padded_rows(embeddings, FEWEST_CLASSES)
        variables = self.detector_variables(classes, mask, names)
        if proposals is None:
            # A trained detector refines its localizer's boxes, but not given ones.
            variables = dataclasses.replace(variables, box_head=None)
        by_canvas = collections.defaultdict(list)
        for number, image in enumerate(images):
            own = np.zeros((0, 4), np.float32) if boxes is None else boxes[number]
            try:
                example = self._letterbox.load(image, own)
            except ValueError as error:
                where = f"image {number}: " if len(images) > 1 else ""
                raise ValueError(f"{where}{error}") from error
            by_canvas[self._letterbox.canvas(example)].append((number, example))
        results = {}
        for members in by_canvas.values():
            for some in _full_or_single(members, self._batch_size):
                batch = self._letterbox.batch([example for _, example in some])
                answer = jax.device_get(program(settings, proposals, variables, batch))
                for row, (number, example) in enumerate(some):
                    results[number] = (example, answer, row)
        return [results[number] for number in range(len(images))]

    def detector_variables(self, classes, mask, names: Sequence[str]) -> DetectorVariables:
        """Return the variables of a detection.

        Args:
            classes: embeddings of the classes, and padding.
            mask: True for a class, False for padding.
            names: of the classes.
        """
        trained = np.zeros(len(classes), bool)
        trained[: len(names)] = names_among(names, self._trained_names)
        return DetectorVariables(
            self.variables,
            jnp.asarray(classes),
            self._localizer_variables,
            self._box_head,
            class_mask=jnp.asarray(mask),
            pyramid_heads=self._pyramid_variables,
            trained_classes=jnp.asarray(trained),
        )

    def predict(
        self, settings, proposals, variables: DetectorVariables, batch: DetectionBatch
    ) -> Prediction:
        """Predict for a batch on one canvas; a function of arrays, with settings as in ``run``."""
        if self._pyramid is not None:
            find = given_boxes if proposals is None else proposals
            return make_pyramid_predict_step(self.model, self._pyramid, settings, find)(
                variables, batch
            )
        find = given_boxes
        if proposals is not None:
            find = proposals_of(self.require_localizer(), proposals)
        return make_predict_step(self.model, settings, find)(variables, batch)

    def _build_program(self, structure: Hashable, part: str) -> Callable:
        """Build the program of one structure of settings: their counts and choices.

        Thresholds and the temperature are its arguments (``ops.arguments``).
        """

        def step(settings, proposals, variables: DetectorVariables, batch: DetectionBatch):
            return getattr(self.predict(settings, proposals, variables, batch), part)

        return jax.jit(step)


def _full_or_single(members: list, size: int) -> Iterator[list]:
    """Yield full batches, then the rest one by one: two programs, and no row of padding."""
    num_full = len(members) // size * size
    for start in range(0, num_full, size):
        yield members[start : start + size]
    for member in members[num_full:]:
        yield [member]
