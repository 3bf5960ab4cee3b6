"""CLIP: an image tower that embeds regions and whole images by one path, and a text tower.

Source: paper section 3.1; docs/reference/towers.md, docs/reference/text.md. The ResNet towers embed
a whole image as the region that covers it. At the training resolution RoIAlign is then the
identity, so the result equals CLIP's. ViT towers keep their class token for whole images. The
losses and the classifier normalise embeddings to unit length; this module does not.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.models.modified_resnet import ModifiedResNet
from regionclip_jax.models.presets import CLIPConfig
from regionclip_jax.models.rematerialization import KeptActivations
from regionclip_jax.models.text_transformer import TextTransformer
from regionclip_jax.models.vision_transformer import VisionTransformer
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.ops.chunks import map_chunks
from regionclip_jax.ops.crops import crop_and_resize
from regionclip_jax.ops.normalization import normalize_crops_for_clip
from regionclip_jax.ops.roi_align import map_for_many, roi_align


@flax.struct.dataclass
class ImageFeatures:
    """Features computed once per image: the map for regions and (ViT) the class token."""

    map: Float[Array, "B h w channels"]
    whole: Float[Array, "B D"] | None
    # (height, width) of each image's part of the map; None means the whole map.
    cells: Int[Array, "B 2"] | None = None


class CLIP(nn.Module):
    """The two towers.

    ``frozen_norm=False`` gives the ResNet live batch norm (to train from scratch).
    ``kept_activations`` affects only the memory and time of gradients.
    """

    config: CLIPConfig
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    kept_activations: KeptActivations = "all"

    def setup(self):
        c = self.config
        if c.is_vit:
            self.visual = VisionTransformer(
                c.grid_size, c.vision_patch_size, c.vision_width, c.vision_layers,
                c.vision_heads, c.embed_dim, self.dtype, self.kept_activations,
            )  # fmt: skip
        else:
            self.visual = ModifiedResNet(
                c.vision_layers, c.vision_width, c.vision_heads, c.embed_dim, c.grid_size,
                self.frozen_norm, self.dtype, self.kept_activations,
            )  # fmt: skip
        self.text = TextTransformer(
            c.vocab_size, c.context_length, c.text_width, c.text_heads, c.text_layers,
            c.embed_dim, self.dtype, self.kept_activations,
        )  # fmt: skip
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    @property
    def stride(self) -> int:
        """Canvas pixels per cell of the feature map."""
        return self.config.vision_patch_size or ModifiedResNet.stride

    @property
    def crop_size(self) -> int:
        """Side of the RoIAlign crops that ``embed_crops`` takes."""
        return 1 if self.config.is_vit else 2 * self.config.grid_size

    def image_features(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"] | None = None
    ) -> ImageFeatures:
        """Compute the features of images, from which regions are cropped.

        Args:
            pixels: normalised (``ops.normalization``).
            sizes: (height, width) of each image. With them the features are those of the image
                alone. Without them the padding affects them, as in the reference's batches.
        """
        if self.config.is_vit:
            return ImageFeatures(*self.visual.features(pixels, sizes))
        feature_map, cells = self.visual.feature_map(pixels, sizes)
        return ImageFeatures(feature_map, None, cells)

    def embed_crops(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N D"]:
        return self.visual.embed_crops(crops)

    def crop_features(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N p p out"]:
        """Return layer4's maps of crops; ``pool_crops`` completes ``embed_crops``. ResNets only."""
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
    ) -> tuple[Float[Array, "B D"], Float[Array, "N D"], Float[Array, ""]]:
        """Return image embeddings, text embeddings, and the log of the logit scale."""
        return self.encode_image(pixels), self.encode_text(tokens), self.logit_scale


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
    implementation: str = "auto",
    differentiated: bool = False,
) -> Float[Array, "B R D"]:
    """Embed boxes: RoIAlign, then layer4 and attention pooling, in rematerialised chunks.

    Args:
        model: the CLIP module.
        variables: its frozen-norm variables.
        features: ``image_features(...)``.
        boxes: canvas pixels; an empty box gives a finite embedding, which the caller must mask.
        regions_per_chunk: largest number of regions per image embedded at once. Crops and layer4's
            activations exist for one chunk at a time, forward and backward. None means one chunk.
        implementation: of RoIAlign, see ``ops.roi_align``.
        differentiated: the caller takes gradients. No number changes. XLA's CPU backend computes a
            convolution's kernel gradient 20 times slower inside a loop, so chunks are unrolled
            there.
    """

    return _of_crops(
        model, variables, features, boxes, model.embed_crops,
        regions_per_chunk, implementation, differentiated,
    )  # fmt: skip


def encode_region_maps(
    model: CLIP,
    variables: dict,
    features: ImageFeatures,
    boxes: Float[Array, "B R 4"],
    *,
    regions_per_chunk: int | None = None,
    implementation: str = "auto",
    differentiated: bool = False,
) -> Float[Array, "B R p p out"]:
    """Return layer4's maps of boxes, the input of a mask head; arguments as in ``encode_regions``.

    ``model.pool_crops`` of the maps gives the embeddings of ``encode_regions``.
    """
    return _of_crops(
        model, variables, features, boxes, model.crop_features,
        regions_per_chunk, implementation, differentiated,
    )  # fmt: skip


def _of_crops(
    model, variables, features, boxes, method, regions_per_chunk, implementation, differentiated
) -> Float[Array, "B R *out"]:
    if regions_per_chunk is not None and regions_per_chunk < boxes.shape[1]:
        # Chunks are rematerialised already; with their blocks too there would be a third pass.
        model = model.clone(kept_activations="all")

    map_, extents = map_for_many(features.map, features.cells, implementation)

    def embed(chunk):
        crops = roi_align(
            map_,
            chunk,
            model.crop_size,
            1 / model.stride,
            extents=extents,
            implementation=implementation,
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

    def embed(chunk):
        crops = crop_and_resize(images, chunk, sizes, model.config.image_resolution)
        crops = normalize_crops_for_clip(crops)
        return _apply_to_crops(model, variables, crops, model.encode_image)

    return map_chunks(embed, boxes, regions_per_chunk)


def _apply_to_crops(model, variables, crops, method) -> Float[Array, "B R *out"]:
    num_images, num_regions = crops.shape[:2]
    flat = crops.reshape(num_images * num_regions, *crops.shape[2:])
    out = model.apply(variables, flat, method=method)
    return out.reshape(num_images, num_regions, *out.shape[1:])


def init_variables(config: CLIPConfig, key: PRNGKeyArray) -> dict:
    """Initialise ``{"params", "batch_stats"}``; under ``jax.eval_shape`` give shapes only."""
    side = config.image_resolution
    variables = CLIP(config).init(
        key, jnp.zeros((1, side, side, 3)), jnp.zeros((1, config.context_length), jnp.int32)
    )
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
