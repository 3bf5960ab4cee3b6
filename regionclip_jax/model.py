"""The public face: a model directory in use. NumPy or PIL in, NumPy out.

    import regionclip_jax

    model = regionclip_jax.load("checkpoints/clip_rn50")
    embeddings = model.encode_regions(image, boxes)
    found = model.detect(image, ["cat", "remote control"])

Boxes are xyxy in pixels of the picture as given. Pictures are resized and put on canvases of few
sizes, so that each function is compiled once for each of them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from regionclip_jax.artifacts.localizer_checkpoint import FOLDER_NAME, load_localizer
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder, require_matching
from regionclip_jax.data.canvas import Size, place_on_canvas, smallest_canvas
from regionclip_jax.data.images import decode_image, to_rgb
from regionclip_jax.data.transforms import resize_short_side, scale_boxes
from regionclip_jax.jobs.assembly import compute_dtype
from regionclip_jax.jobs.concept_pool import embed_names
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.steps.embed_step import make_embed_regions_step
from regionclip_jax.text.class_lists import check_names

Picture = np.ndarray | Image.Image | str | Path
_RESIZE = "bilinear_round"
_REGIONS_PER_CHUNK = 25


@dataclasses.dataclass(frozen=True)
class Detected:
    """What was found in one picture, best first."""

    boxes: Float[np.ndarray, "K 4"]  # xyxy, pixels of the picture as given
    scores: Float[np.ndarray, " K"]
    classes: Int[np.ndarray, " K"]  # rows of the vocabulary
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """One picture as the device sees it; ``scale`` is canvas pixels per pixel of it (y, x)."""

    image: np.ndarray
    size: tuple[int, int]
    scale: np.ndarray


class RegionCLIP:
    """A model directory, ready to encode and detect; ``load`` makes one.

    Attributes:
        card: architecture and origin of the weights.
        config: ``card.architecture``.
    """

    def __init__(self, directory: str | Path, *, dtype: str, short_side: int, max_long_side: int):
        self.directory = Path(directory)
        variables, self.card = load_model(directory)
        self.config = self.card.architecture
        self._model = CLIP(self.config, dtype=compute_dtype(dtype))
        self._variables = jax.device_put(variables)
        self._encoder = describe_encoder(self.config, variables["params"])
        self._localizer = self._localizer_variables = None
        if (self.directory / FOLDER_NAME).exists():
            localizer, card = load_localizer(directory)
            self._localizer = Localizer(card.architecture, self._model.dtype)
            self._localizer_variables = jax.device_put(localizer)
        self._limits = short_side, max_long_side
        self._canvas_sizes = canvas_sizes(short_side, max_long_side)
        self._embed_regions = jax.jit(
            make_embed_regions_step(self._model, regions_per_chunk=_REGIONS_PER_CHUNK)
        )

    @property
    def has_localizer(self) -> bool:
        return self._localizer is not None

    def encode_text(
        self, names: Sequence[str], *, templates: str = "clip"
    ) -> Float[np.ndarray, "C D"]:
        """Embeddings of names, averaged over the prompt templates, not normalised.

        Args:
            names: class names, concepts, phrases.
            templates: "clip" (the 81 of RegionCLIP) or "plain" (five short ones).

        Raises:
            ValueError: no name, an empty one, or one that comes twice.
        """
        return self.vocabulary(names, templates=templates).embeddings

    def vocabulary(self, names: Sequence[str], *, templates: str = "clip") -> Vocabulary:
        """As ``encode_text``, with the names and this text tower's hash: save it, load it, use it.

        Raises:
            ValueError: no name, an empty one, or one that comes twice.
        """
        names = check_names(names, "names")
        return embed_names(self._model, self._variables, names, templates)

    def encode_regions(
        self, image: Picture, boxes: Float[np.ndarray, "R 4"]
    ) -> Float[np.ndarray, "R D"]:
        """Embeddings of boxes of one picture, not normalised.

        Args:
            image: RGB uint8 [H, W, 3] or gray [H, W]; or a PIL picture, taken as it is stored; or a
                path, whose picture is turned as its EXIF data says.
            boxes: xyxy in pixels of the picture.

        Raises:
            ValueError: the boxes have another shape, or one is not finite or has no area.
        """
        canvas = self._place(image)
        boxes = check_boxes(boxes)
        rows = bucket(len(boxes))
        padded = np.zeros((1, rows, 4), np.float32)
        padded[0, : len(boxes)] = scale_boxes(boxes, *canvas.scale.tolist())
        found = self._embed_regions(
            self._variables, canvas.image[None], np.array([canvas.size], np.int32), padded
        )
        return np.asarray(found[0, : len(boxes)], np.float32)

    def _place(self, image: Picture) -> _Canvas:
        original = read_picture(image)
        resized = resize_short_side(original, *self._limits, _RESIZE)
        size = smallest_canvas(self._canvas_sizes, *resized.shape[:2])
        pixels = np.zeros((*size, 3), np.uint8)
        place_on_canvas(resized, pixels)
        scale = np.divide(resized.shape[:2], original.shape[:2], dtype=np.float32)
        return _Canvas(pixels, resized.shape[:2], scale)

    def _require(self, vocabulary: Vocabulary) -> Vocabulary:
        require_matching(vocabulary, self._encoder)
        return vocabulary


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    short_side: int = 800,
    max_long_side: int = 1333,
) -> RegionCLIP:
    """Opens a model directory (scripts/convert_checkpoint.py or a training job makes one).

    Args:
        dtype: "float32", or "bfloat16" where speed counts more than the last digits.
        short_side, max_long_side: pictures are resized to these, in pixels, as the reference does
            for detection.

    Raises:
        CheckpointMismatch: there is no complete model, or its arrays are not what its card says.
    """
    return RegionCLIP(directory, dtype=dtype, short_side=short_side, max_long_side=max_long_side)


def canvas_sizes(short_side: int, max_long_side: int) -> tuple[Size, ...]:
    """Lying and upright canvases for pictures of 4:3 and of all longer shapes; multiples of 32."""
    short, middle, long = (
        -(-side // 32) * 32
        for side in (short_side, round(short_side * 4 / 3), max(short_side, max_long_side))
    )
    lying = {(short, min(middle, long)), (short, long)}
    return tuple(sorted(lying | {(width, height) for height, width in lying}))


def bucket(number: int) -> int:
    """Rows that ``number`` regions are padded to: few numbers, so few programs to compile."""
    rows = _REGIONS_PER_CHUNK
    while rows < number:
        rows *= 2
    return rows


def read_picture(image: Picture) -> np.ndarray:
    """RGB uint8 [H, W, 3].

    Raises:
        RecordError: a file that is no picture.
        ValueError: an array of another kind.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        return decode_image(
            path.read_bytes(), source=str(path.parent), key=path.name, apply_orientation=True
        )
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.shape[2:] or (3,)) != (3,):
        raise ValueError(
            f"image: expected RGB uint8 [H, W, 3] or gray [H, W], found {pixels.dtype} "
            f"{list(pixels.shape)}; convert it, e.g. with PIL's convert('RGB')"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def check_boxes(boxes) -> Float[np.ndarray, "R 4"]:
    """Boxes as float32.

    Raises:
        ValueError: another shape, or a box that is not finite or has no area.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"boxes: expected [R, 4] as x1, y1, x2, y2, found the shape {list(boxes.shape)}"
        )
    good = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"boxes: row {row} is {boxes[row].tolist()}, expected finite x1 < x2 and y1 < y2 in "
            "pixels of the picture (not x, y, width, height)"
        )
    return boxes
