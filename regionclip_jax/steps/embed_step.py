"""Steps that embed texts and regions; not normalised."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int, UInt8

from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.ops.normalization import normalize_images


def make_embed_text_step(model: CLIP) -> Callable[[dict, Int[Array, "N L"]], Float[Array, "N D"]]:
    """Build ``(variables, tokens) -> embeddings`` (not normalised) of the text tower."""

    def step(variables: dict, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        return model.apply(variables, tokens, method=model.encode_text)

    return step


def make_embed_regions_step(
    model: CLIP, *, regions_per_chunk: int | None, roi_align_impl: str = "auto"
) -> Callable[..., Float[Array, "B R D"]]:
    """Build ``(variables, images, sizes, boxes) -> embeddings`` of boxes in canvas pixels."""

    def step(
        variables: dict,
        images: UInt8[Array, "B H W 3"],
        sizes: Int[Array, "B 2"],
        boxes: Float[Array, "B R 4"],
    ) -> Float[Array, "B R D"]:
        pixels = normalize_images(images, sizes, model.config.preprocessing)
        features = model.apply(variables, pixels, sizes, method=model.image_features)
        return encode_regions(
            model,
            variables,
            features,
            boxes,
            regions_per_chunk=regions_per_chunk,
            roi_align_impl=roi_align_impl,
        )

    return step
