"""CLIP: an image tower that embeds regions and whole images, and a text tower.

Steps and the public API use towers of every family (``models.towers``) through this module.

Source: paper section 3.1; docs/reference/towers.md, docs/reference/text.md. The ResNet towers embed
a whole image as the region that covers it. At the training resolution RoIAlign is then the
identity, so the result equals CLIP's. Other towers, such as ViTs with their class token, have an
embedding of the whole image among their features. The losses and the classifier normalise
embeddings to unit length; this module does not.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.models.rematerialization import RematPolicy
from regionclip_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, CLIPConfig, kind_of
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.ops.chunks import map_chunks
from regionclip_jax.ops.crops import crop_and_letterbox, crop_and_resize
from regionclip_jax.ops.normalization import normalize_crops, unit_length
from regionclip_jax.ops.roi_align import map_for_many, roi_align
from regionclip_jax.structures import AnyArray, ImageFeatures

# SigLIP's initial factor and summand of the cosines, also those of a model that gets a sigmoid
# loss without having a bias.
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
_SOFTMAX_SCALE = 1 / 0.07


class CLIP(nn.Module):
    """The two towers, the logit scale and, if the config has one, the logit bias.

    ``frozen_norm=False`` gives the ResNet live batch norm (to train from scratch).
    ``remat`` affects only the memory and time of gradients.
    """

    config: CLIPConfig
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    def setup(self):
        c = self.config
        image = IMAGE_TOWERS[kind_of(c.image, IMAGE_TOWERS)].module
        self.visual = image(
            c.image,
            c.preprocessing.resolution,
            c.embed_dim,
            self.frozen_norm,
            self.dtype,
            self.remat,
        )
        text = TEXT_TOWERS[kind_of(c.text, TEXT_TOWERS)].module
        self.text = text(c.text, c.embed_dim, self.dtype, self.remat)
        constant = nn.initializers.constant
        scale = SIGMOID_SCALE if c.logit_bias else _SOFTMAX_SCALE
        self.logit_scale = self.param("logit_scale", constant(np.log(scale)), ())
        if c.logit_bias:
            self.logit_bias = self.param("logit_bias", constant(SIGMOID_BIAS), ())

    @property
    def stride(self) -> int:
        """Canvas pixels per cell of the feature map."""
        return self.config.image.stride

    @property
    def crop_size(self) -> int:
        """Side of the RoIAlign crops that ``embed_crops`` takes."""
        return self.config.crop_size

    def image_features(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"] | None = None
    ) -> ImageFeatures:
        """Compute the features of images, from which regions are cropped.

        Args:
            pixels: normalised (``ops.normalization``).
            sizes: (height, width) of each image. With them the features are those of the image
                alone. Without them the padding affects them, as in the reference's batches.
        """
        return self.visual.features(pixels, sizes)

    def features_and_blocks(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"], blocks: tuple[int, ...]
    ) -> tuple[ImageFeatures, list[Float[Array, "B h w channels"]]]:
        """Compute the features and the maps of blocks; only of a ``BlockImageTower``."""
        return self.visual.features_and_blocks(pixels, sizes, blocks)

    def embed_crops(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N D"]:
        return self.visual.embed_crops(crops)

    def project(self, x: Float[Array, "... channels"]) -> Float[Array, "... D"]:
        """Map cells of the features' map to embeddings; only of a ``DenseImageTower``."""
        return self.visual.project(x)

    def crop_features(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N p p out"]:
        """Return the maps of crops for a mask head; ``pool_crops`` completes ``embed_crops``.

        Only of towers whose config has ``crop_channels``.
        """
        return self.visual.crop_features(crops)

    def pool_crops(self, maps: Float[Array, "N p p out"]) -> Float[Array, "N D"]:
        return self.visual.pool_crops(maps)

    def encode_image(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Embed whole canvases."""
        features = self.image_features(pixels)
        if features.whole is not None:
            return features.whole
        num, height, width, _ = features.map.shape
        if (height, width) == (self.crop_size, self.crop_size):
            return self.embed_crops(features.map)
        boxes = whole_image_boxes(jnp.tile(jnp.array([pixels.shape[1:3]]), (num, 1)))
        crops = roi_align(features.map, boxes[:, None], self.crop_size, 1 / self.stride)
        return self.embed_crops(crops[:, 0])

    def encode_text(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        return self.text(tokens)

    def __call__(
        self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "N L"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "N D"]]:
        """Return the embeddings of whole canvases and of texts."""
        return self.encode_image(pixels), self.encode_text(tokens)


def logit_scale_and_bias(params: dict) -> tuple[AnyArray, AnyArray | None]:
    """Return the log of the factor of the cosines, and the summand of the logits.

    The summand is None for models without one. A softmax over classes does not depend on it.
    """
    return params["logit_scale"], params.get("logit_bias")


def with_initial_bias(params: dict) -> dict:
    """Return the parameters of a model with a bias, which start as SigLIP's do if it had none.

    The scale starts anew with the bias, as a scale that a softmax learned belongs to no bias.
    """
    if "logit_bias" in params:
        return params
    start = {"logit_scale": np.log(SIGMOID_SCALE), "logit_bias": SIGMOID_BIAS}
    return params | {name: np.asarray(value, np.float32) for name, value in start.items()}


def whole_image_boxes(sizes: Int[Array, "B 2"]) -> Float[Array, "B 4"]:
    """Return the box of each image's real pixels; ``sizes`` are (height, width)."""
    zeros = jnp.zeros(sizes.shape[0])
    return jnp.stack([zeros, zeros, sizes[:, 1], sizes[:, 0]], -1).astype(jnp.float32)


def encode_regions(
    model: CLIP,
    variables: dict,
    features: ImageFeatures,
    boxes: Float[Array, "B R 4"],
    *,
    regions_per_chunk: int | None = None,
    roi_align_impl: str = "auto",
    differentiated: bool = False,
) -> Float[Array, "B R D"]:
    """Embed boxes: RoIAlign, then the rest of the image tower, in rematerialised chunks.

    With ``normalize_map`` of the config it is ``average_unit_cells``, whose crops need no chunks.

    Args:
        model: the CLIP module.
        variables: its frozen-norm variables.
        features: ``image_features(...)``.
        boxes: canvas pixels; an empty box gives a finite embedding, which the caller must mask.
        regions_per_chunk: largest number of regions per image embedded at once. Crops and their
            activations exist for one chunk at a time, forward and backward. None means one chunk.
        roi_align_impl: see ``ops.roi_align``.
        differentiated: the caller takes gradients. No number changes. XLA's CPU backend computes a
            convolution's kernel gradient 20 times slower inside a loop, so chunks are unrolled
            there.
    """
    if model.config.normalize_map:
        return average_unit_cells(model, variables, features, boxes, roi_align_impl=roi_align_impl)
    return _apply_to_boxes(
        model, variables, features, boxes, model.embed_crops,
        regions_per_chunk, roi_align_impl, differentiated,
    )  # fmt: skip


def average_unit_cells(
    model: CLIP,
    variables: dict,
    features: ImageFeatures,
    boxes: Float[Array, "B R 4"],
    *,
    roi_align_impl: str = "auto",
) -> Float[Array, "B R D"]:
    """Embed boxes by one RoIAlign average of the map's embeddings at unit length, in fp32.

    The method of CLIPSelf; docs/reference/distillation.md#student. Unlike in ``encode_regions``,
    cells with long embeddings do not dominate a region.

    Args:
        model, variables, features, boxes, roi_align_impl: as in ``encode_regions``; the image tower
            is a ``DenseImageTower``.
    """
    cells = model.apply(variables, features.map, method=model.project)
    averages = roi_align(
        unit_length(cells),
        boxes,
        1,
        1 / model.stride,
        extents=features.cells,
        implementation=roi_align_impl,
    )
    return averages[:, :, 0, 0]


def encode_regions_and_images(
    model: CLIP,
    variables: dict,
    features: ImageFeatures,
    boxes: Float[Array, "B R 4"],
    sizes: Int[Array, "B 2"],
    **how,
) -> tuple[Float[Array, "B R D"], Float[Array, "B D"]]:
    """Embed boxes and whole images; without an embedding of its own, an image is one more region.

    Args:
        model, variables, features, boxes: as in ``encode_regions``.
        sizes: (height, width) of the part of each canvas that is the image.
        how: further arguments of ``encode_regions``.
    """
    if features.whole is not None:
        return encode_regions(model, variables, features, boxes, **how), features.whole
    boxes = jnp.concatenate([whole_image_boxes(sizes)[:, None], boxes], 1)
    embeddings = encode_regions(model, variables, features, boxes, **how)
    return embeddings[:, 1:], embeddings[:, 0]


def encode_region_maps(
    model: CLIP,
    variables: dict,
    features: ImageFeatures,
    boxes: Float[Array, "B R 4"],
    *,
    regions_per_chunk: int | None = None,
    roi_align_impl: str = "auto",
    differentiated: bool = False,
) -> Float[Array, "B R p p out"]:
    """Return the maps of boxes, the input of a mask head; arguments as in ``encode_regions``.

    ``model.pool_crops`` of the maps gives the embeddings of ``encode_regions``.
    """
    return _apply_to_boxes(
        model, variables, features, boxes, model.crop_features,
        regions_per_chunk, roi_align_impl, differentiated,
    )  # fmt: skip


def _apply_to_boxes(
    model, variables, features, boxes, method, regions_per_chunk, roi_align_impl, differentiated
) -> Float[Array, "B R *out"]:
    if regions_per_chunk is not None and regions_per_chunk < boxes.shape[1]:
        # Chunks are rematerialised already; with their blocks too there would be a third pass.
        model = model.clone(remat="all")

    map_, extents = map_for_many(features.map, features.cells, roi_align_impl)

    def embed(chunk):
        crops = roi_align(
            map_,
            chunk,
            model.crop_size,
            1 / model.stride,
            extents=extents,
            implementation=roi_align_impl,
        )
        return _apply_to_crops(model, variables, crops, method)

    unroll = differentiated and target_backend() == "cpu"
    return map_chunks(embed, boxes, regions_per_chunk, unroll=unroll)


def encode_crops(
    model: CLIP,
    variables: dict,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    boxes: Float[Array, "B R 4"],
    *,
    regions_per_chunk: int | None = None,
) -> Float[Array, "B R D"]:
    """Embed boxes as separate images: crop, resize, and apply the whole image tower.

    The method of CLIP without RegionCLIP (paper figure 1), at the cost of one tower per box. Boxes
    are resized to the square of the training resolution; see ``ops.crops``.

    Args:
        model, variables, regions_per_chunk: as in ``encode_regions``.
        images: canvases, not normalised.
        sizes: (height, width) of each image's real pixels.
        boxes: canvas pixels; a box without pixels gives the embedding of a black image.
    """
    return _encode_pixels(
        model, variables, images, sizes, boxes, crop_and_resize, regions_per_chunk
    )


def encode_letterboxed_crops(
    model: CLIP,
    variables: dict,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    boxes: Float[Array, "B R 4"],
    *,
    regions_per_chunk: int | None = None,
) -> Float[Array, "B R D"]:
    """Embed boxes as ``encode_crops``, but with their aspect ratio, in the middle of black squares.

    Source: docs/reference/distillation.md#crops.
    """
    return _encode_pixels(
        model, variables, images, sizes, boxes, crop_and_letterbox, regions_per_chunk
    )


def _encode_pixels(
    model, variables, images, sizes, boxes, crop, regions_per_chunk
) -> Float[Array, "B R D"]:
    preprocessing = model.config.preprocessing

    def embed(chunk):
        crops = crop(images, chunk, sizes, preprocessing.resolution)
        crops = normalize_crops(crops, preprocessing)
        return _apply_to_crops(model, variables, crops, model.encode_image)

    return map_chunks(embed, boxes, regions_per_chunk)


def _apply_to_crops(model, variables, crops, method) -> Float[Array, "B R *out"]:
    num_images, num_regions = crops.shape[:2]
    flat = crops.reshape(num_images * num_regions, *crops.shape[2:])
    out = model.apply(variables, flat, method=method)
    return out.reshape(num_images, num_regions, *out.shape[1:])


def init_variables(config: CLIPConfig, key: PRNGKeyArray) -> dict:
    """Initialise ``{"params", "batch_stats"}``; under ``jax.eval_shape`` give shapes only."""
    side = config.preprocessing.resolution
    variables = CLIP(config).init(
        key, jnp.zeros((1, side, side, 3)), jnp.zeros((1, config.text.context_length), jnp.int32)
    )
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
