"""Public API: load a model directory, encode and detect. NumPy or PIL in, NumPy out.

    import regionclip_jax

    model = regionclip_jax.load("checkpoints/clip_rn50")
    embeddings = model.encode_regions(image, boxes)
    found = model.detect(image, ["cat", "remote control"])

Boxes are xyxy in pixels of the given image. Images are resized and letterboxed to canvases of few
sizes, so that each function is compiled once for each size.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.score_settings import complete_scores
from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.artifacts.vocabulary import (
    FILE_NAME,
    Vocabulary,
    describe_encoder,
    require_matching,
)
from regionclip_jax.assembly.concept_pool import embed_names
from regionclip_jax.assembly.devices import cache_programs, start_devices
from regionclip_jax.assembly.models import compute_dtype
from regionclip_jax.data.loading.buckets import padded_count, padded_rows
from regionclip_jax.data.loading.decoding import AnyImage, read_any_image
from regionclip_jax.data.loading.letterbox import Letterbox
from regionclip_jax.data.loading.tiles import tile_boxes
from regionclip_jax.detected import Detected, Proposed, merge_detections
from regionclip_jax.hub import local_directory
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import score_classes
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.ops import arguments  # noqa: F401  (settings are arguments of jit)
from regionclip_jax.ops.host_boxes import host_scale_boxes
from regionclip_jax.predictor import FEWEST_CLASSES, Predictor
from regionclip_jax.settings import (
    DetectionSettings,
    EmbedFrom,
    NmsMethod,
    NmsSettings,
    Objectness,
    ProposalSettings,
    completed,
    unstated,
)
from regionclip_jax.steps.embed_step import make_embed_regions_step
from regionclip_jax.steps.predict_step import DetectorVariables, Prediction
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.names import check_names

_REGIONS_PER_CHUNK = 25
# Programs are compiled for these counts and their doubles. Padding is cut off the results.
_FEWEST_DETECTIONS, _FEWEST_REGIONS = 100, 25
# Least recently used vocabularies beyond this number are dropped from memory.
_MOST_VOCABULARIES = 32
_BATCHES_OF_TILES = 8
AnyVocabulary = Vocabulary | Sequence[str] | str | Path | None

_classify = jax.jit(score_classes)


class RegionCLIP:
    """Loaded model directory that encodes and detects; ``load`` returns one.

    Threads may share one.

    Attributes:
        card: architecture and origin of the weights.
        config: ``card.architecture``.
        scores: settings of proposals and scores, as the directory states them; the arguments of
            ``detect`` and ``propose`` that are None.
        temperature: divisor of the cosines with class names (CLIP: 0.01), that of ``scores``.
        has_localizer: True if the model can propose regions.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        dtype: str,
        short_side: int,
        max_long_side: int,
        batch_size: int,
    ):
        self.directory = Path(directory)
        variables, self.card = load_model(directory)
        self.config = self.card.architecture
        model = CLIP(self.config, dtype=compute_dtype(dtype))
        self._encoder = describe_encoder(self.config, variables["params"])
        resize = self.config.preprocessing.resize
        self._letterbox = Letterbox(short_side, max_long_side, resize)
        self._batch_size = batch_size
        self._predictor = Predictor(
            self.directory, model, jax.device_put(variables), self._letterbox, batch_size
        )
        self.has_localizer = self._predictor.has_proposals
        localizer = self._predictor.localizer
        self.scores = complete_scores(
            self.card.scores,
            variables["params"],
            None if localizer is None else localizer.config,
        )
        temperature = self.scores.detection.temperature
        assert temperature is not None
        self.temperature = temperature
        self._embed_regions = jax.jit(
            make_embed_regions_step(model, regions_per_chunk=_REGIONS_PER_CHUNK)
        )
        # Threads that ask for the same names wait for one of them.
        self._making = threading.Lock()
        self._embed_names = functools.lru_cache(_MOST_VOCABULARIES)(
            functools.partial(
                embed_names, *self.clip, tokenizer=tokenizer_of(directory, self.config.text)
            )
        )

    def encode_text(
        self, names: Sequence[str], *, templates: str = "clip"
    ) -> Float[np.ndarray, "C D"]:
        """Return the embeddings of names, averaged over the prompt templates, not normalized.

        Args:
            names: class names, concepts, phrases.
            templates: "clip" (the 81 of RegionCLIP) or "plain" (five short ones).

        Raises:
            ValueError: no name, an empty name, or a repeated name.
        """
        return self.vocabulary(names, templates=templates).embeddings

    def vocabulary(self, names: AnyVocabulary = None, *, templates: str = "clip") -> Vocabulary:
        """Return names with their embeddings and the hash of this text tower.

        Args:
            names: names, whose embeddings are cached; or a Vocabulary, or the path of one (.npz),
                which must come from this model's text tower; None: the model directory's own.

        Raises:
            CheckpointMismatch: there is no such file, or another text tower made it.
            ValueError: no name, an empty name, or a repeated name.
        """
        if names is None:
            names = self.directory / FILE_NAME
        if isinstance(names, Path) or (isinstance(names, str) and names.endswith(".npz")):
            names = Vocabulary.load(names)
        if isinstance(names, Vocabulary):
            require_matching(names, self._encoder)
            return names
        names = check_names(names, "names")
        with self._making:
            return self._embed_names(names, templates)

    def encode_regions(
        self, image: AnyImage, boxes: Float[np.ndarray, "R 4"]
    ) -> Float[np.ndarray, "R D"]:
        """Return the embeddings of boxes of one image, not normalized.

        Args:
            image: RGB uint8 [H, W, 3] or gray [H, W]; or a PIL image, used as stored; or a path,
                whose image is rotated by its EXIF orientation.
            boxes: xyxy in pixels of the image.

        Raises:
            ValueError: the boxes have another shape or format (fractions of the image, x, y,
                width, height), or one is not finite, has no area or lies outside the image.
        """
        example = self._letterbox.load(image, boxes)
        batch = self._letterbox.batch([example])
        _, variables = self.clip
        embeddings = self._embed_regions(variables, batch.images, batch.sizes, batch.boxes)
        # Cut on the host: a device would compile a program for each number of boxes.
        return np.asarray(embeddings, np.float32)[0, : len(example.boxes)]

    def classify(
        self, embeddings: Float[np.ndarray, "R D"], vocabulary: AnyVocabulary = None
    ) -> Float[np.ndarray, "R C"]:
        """Return class probabilities of region embeddings.

        The directory states their kind (``self.scores.detection``). After a softmax, the rest of a
        row to 1 is background. After SigLIP's sigmoid each class stands alone, and a row has no
        particular sum.
        """
        classes = self.vocabulary(vocabulary).embeddings
        padded, mask = padded_rows(classes, FEWEST_CLASSES)
        regions, _ = padded_rows(np.asarray(embeddings, np.float32), _FEWEST_REGIONS)
        probabilities = _classify(regions, padded, self.scores.detection, mask)
        return np.asarray(probabilities)[: len(embeddings), : len(classes)]

    def propose(
        self,
        image: AnyImage | Sequence[AnyImage],
        *,
        num_proposals: int | None = None,
        nms_threshold: float | None = None,
    ) -> Proposed | list[Proposed]:
        """Return the localizer's class-agnostic proposals.

        Args:
            image: as in ``encode_regions``; a list returns a list.
            num_proposals: largest number of proposals. None: the directory's.
            nms_threshold: IoU above which the lower-scored of two proposals is suppressed. None:
                the directory's.

        Raises:
            CheckpointMismatch: the model has no localizer.
        """
        images, many = _listed(image)
        proposals = self._proposals(num_proposals, nms_threshold)
        settings = DetectionSettings(objectness="none", max_detections=1)
        no_classes = np.zeros((1, self.config.embed_dim), np.float32)
        proposed = []
        # Only the regions of the prediction are requested, so XLA computes nothing else.
        for example, regions, row in self._predictor.run(
            images, None, settings, proposals, no_classes, (), "regions"
        ):
            real = regions.mask[row]
            boxes = host_scale_boxes(regions.boxes[row][real], 1 / example.scale)
            proposed.append(Proposed(boxes, regions.scores[row][real]))
        return proposed if many else proposed[0]

    def detect(
        self,
        image: AnyImage | Sequence[AnyImage],
        vocabulary: AnyVocabulary = None,
        *,
        boxes: Float[np.ndarray, "R 4"] | Sequence[np.ndarray] | None = None,
        objectness: Objectness | None = None,
        score_threshold: float | None = None,
        nms: NmsMethod | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        num_proposals: int | None = None,
        proposal_nms_threshold: float | None = None,
        embed_from: EmbedFrom | None = None,
        report_probabilities: bool | None = None,
    ) -> Detected | list[Detected]:
        """Detect objects by name. A number that is None is the directory's (``self.scores``).

        A trained detector (configs/train_detector.py) refines its localizer's boxes.

        Args:
            image: as in ``encode_regions``; a list returns a list.
            vocabulary: class names, or another argument of ``self.vocabulary``.
            boxes: regions, xyxy in pixels of the image (a list of such arrays for a list of
                images); None uses the localizer's proposals.
            objectness: use of the localizer's objectness: "sigmoid", "none", or "reference", whose
                scores may exceed 1 (see ``ops.detections``). Given boxes have none.
            score_threshold: detections with a score up to this are dropped.
            nms: "hard", or soft: "gaussian", "linear"; within a class.
            nms_threshold: IoU from which a box suppresses another.
            max_detections: largest number of detections of each image.
            num_proposals: largest number of the localizer's proposals.
            proposal_nms_threshold: IoU from which a proposal suppresses another.
            embed_from: "features", or "crops": each region alone through the image tower.
            report_probabilities: report class probabilities as scores; objectness still ranks and
                thresholds (the reference's VIS; hard NMS only).

        Raises:
            CheckpointMismatch: no localizer and no boxes, or a vocabulary of another text tower.
            ValueError: invalid boxes, names or thresholds.
        """
        images, many = _listed(image)
        classes = self.vocabulary(vocabulary)
        stated = dataclasses.replace(
            unstated(DetectionSettings),
            embed_from=embed_from,
            objectness=objectness if boxes is None else "none",
            score_threshold=score_threshold,
            nms=NmsSettings(nms, nms_threshold, None, None),
            max_detections=max_detections,
            report_probabilities=report_probabilities,
            regions_per_chunk=_REGIONS_PER_CHUNK,
        )
        settings = completed(stated, self.scores.detection)
        threshold, most = settings.score_threshold, settings.max_detections
        assert threshold is not None and most is not None
        if not threshold >= 0:  # Padding has the score 0.
            raise ValueError(f"score_threshold: found {threshold}, expected 0 or more")
        settings = dataclasses.replace(
            settings, max_detections=padded_count(most, _FEWEST_DETECTIONS)
        )
        given = proposals = None
        if boxes is None:
            proposals = self._proposals(num_proposals, proposal_nms_threshold)
        else:
            given = list(boxes) if many else [boxes]
            if len(given) != len(images):
                raise ValueError(
                    f"boxes: {len(given)} arrays, expected one for each of {len(images)} images"
                )
        detected = []
        for example, detections, row in self._predictor.run(
            images, given, settings, proposals, classes.embeddings, classes.names, "detections"
        ):
            # The best detections are the same for any larger number of them.
            real = detections.mask[row] & (np.arange(detections.mask.shape[1]) < most)
            indices = detections.classes[row][real]
            height, width = (
                round(side / scale)
                for side, scale in zip(example.image.shape[:2], example.scale.tolist(), strict=True)
            )
            detected.append(
                Detected(
                    detections.boxes[row][real],
                    detections.scores[row][real],
                    indices,
                    tuple(classes.names[k] for k in indices),
                    classes.names,
                    (height, width),
                    settings.gives_probabilities,
                )
            )
        return detected if many else detected[0]

    def detect_tiles(
        self,
        image: AnyImage,
        vocabulary: AnyVocabulary = None,
        *,
        tile: int,
        overlap: float = 0.2,
        merge_threshold: float = 0.5,
        **settings: Any,
    ) -> Detected:
        """Detect small objects of a large image: in each of its tiles, and in the whole image.

        Detections of the tiles move to the image and are merged (``data.loading.tiles``).

        Args:
            image: one image, as in ``detect``.
            vocabulary: as in ``detect``.
            tile: side of the square tiles, in pixels of the image. Each is resized like an image.
            overlap: share of the side that neighbours have in common, at least.
            merge_threshold: share of the smaller area that two detections of a class and of
                different tiles may have in common, before the lower-scored one is suppressed.
            **settings: arguments of ``detect``, but for ``boxes``.

        Raises:
            CheckpointMismatch, ValueError: as ``detect``; a tile, an overlap or a threshold that is
                none.
        """
        if not 0 <= merge_threshold <= 1:
            raise ValueError(f"merge_threshold: found {merge_threshold}, expected 0 to 1")
        if "boxes" in settings:
            raise ValueError("boxes: given regions need no tiles, give them to detect")
        pixels = read_any_image(image)
        height, width = pixels.shape[:2]
        places = tile_boxes(height, width, tile, overlap)
        # The whole image is one more tile: an object may be larger than the others.
        every = _listed(self.detect(pixels, vocabulary, **settings))[0]
        if len(places) == 1:
            return every[0]
        # Some batches at a time: all resized tiles together take more memory than the image.
        together = _BATCHES_OF_TILES * self._batch_size
        for start in range(0, len(places), together):
            some = places[start : start + together]
            crops = [pixels[y1:y2, x1:x2] for x1, y1, x2, y2 in some]
            every += _listed(self.detect(crops, vocabulary, **settings))[0]
        corners = [(0, 0), *((x, y) for x, y, _, _ in places)]
        most = settings.get("max_detections")
        most = self.scores.detection.max_detections if most is None else most
        return merge_detections(every, corners, merge_threshold, most)

    def _proposals(
        self, num_proposals: int | None, nms_threshold: float | None
    ) -> ProposalSettings:
        self.require_proposals()
        stated = ProposalSettings(num_proposals, None, nms_threshold, None)
        return completed(stated, self.scores.proposals)

    def require_proposals(self) -> None:
        """Refuse a model that cannot propose regions.

        Raises:
            CheckpointMismatch: it has neither a localizer nor heads on a pyramid.
        """
        if not self.has_localizer:
            self.require_localizer()

    def require_localizer(self) -> Localizer:
        """Return the localizer.

        Raises:
            CheckpointMismatch: the model has none.
        """
        return self._predictor.require_localizer()

    def detection_function(
        self,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        num_proposals: int | None = None,
        **computation: Any,
    ) -> tuple[Callable[[DetectorVariables, DetectionBatch], Prediction], DetectionSettings]:
        """Return ``detect`` as a function of arrays with constant settings, and the settings.

        Args:
            score_threshold: as of ``detect``.
            max_detections: as of ``detect``.
            num_proposals: as of ``detect``.
            computation: other fields of ``DetectionSettings``, which change no result.

        Raises:
            CheckpointMismatch: the model has no localizer.
        """
        stated = dataclasses.replace(
            unstated(DetectionSettings),
            score_threshold=score_threshold,
            max_detections=max_detections,
            regions_per_chunk=_REGIONS_PER_CHUNK,
            **computation,
        )
        settings = completed(stated, self.scores.detection)
        proposals = self._proposals(num_proposals, None)
        return functools.partial(self._predictor.predict, settings, proposals), settings

    @property
    def clip(self) -> tuple[CLIP, dict]:
        """Module of both towers, and its variables."""
        return self._predictor.model, self._predictor.variables

    def detector_variables(self, vocabulary: Vocabulary) -> DetectorVariables:
        """Return the first argument of ``detection_function`` for the classes of a vocabulary."""
        mask = np.ones(len(vocabulary.names), bool)
        return self._predictor.detector_variables(vocabulary.embeddings, mask, vocabulary.names)


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    short_side: int = 800,
    max_long_side: int = 1333,
    batch_size: int = 1,
    require_platform: str | None = None,
) -> RegionCLIP:
    """Load a model directory (written by scripts/convert_checkpoint.py or a training job).

    Args:
        directory: the model directory, or ``hf://owner/name`` or ``hf://owner/name@revision`` on
            the Hugging Face Hub (``hub``).
        dtype: "float32"; "bfloat16", faster but less precise; or "auto": bfloat16 on GPUs and TPUs,
            float32 on CPUs.
        short_side: length in pixels that the short side of an image is resized to.
        max_long_side: largest length in pixels of the long side, which limits the resize.
        batch_size: number of images of a list that are processed at once if they share a canvas;
            the rest of a canvas is processed one by one.
        require_platform: "cpu", "gpu" or "tpu"; None computes on what JAX finds.

    Compiled programs are kept on the disk (``assembly.devices.cache_programs``).

    Raises:
        DeviceError: JAX's devices are of another platform, or do not start.
        CheckpointMismatch: there is no complete model, or its arrays do not match its card.
        HubError: the Hub has no such model, or does not answer and the cache has no copy.
    """
    start_devices(require_platform)
    cache_programs()
    return RegionCLIP(
        local_directory(directory),
        dtype=dtype,
        short_side=short_side,
        max_long_side=max_long_side,
        batch_size=batch_size,
    )


def _listed(image) -> tuple[list, bool]:
    many = isinstance(image, list | tuple)
    return (list(image) if many else [image]), many
