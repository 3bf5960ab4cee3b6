"""Texts to embeddings, in fixed-size pieces."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from regionclip_jax.models.clip import CLIP


def make_embed_text_step(model: CLIP) -> Callable[[dict, Int[Array, "N L"]], Float[Array, "N D"]]:
    """``(variables, tokens) -> embeddings`` (not normalised) of the text tower."""

    def step(variables: dict, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        return model.apply(variables, tokens, method=model.encode_text)

    return step
