"""Recognition of given boxes: which class is in each of them, and the best pairs of an image.

Paper section 3.4 and 4.2 (zero-shot inference with ground-truth boxes); spec: detector_eval 0.
Scores are the softmax over the classes' cosines and the zero background logit, all over the
temperature.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regionclip_jax.losses.concept_alignment import concept_logits
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.ops.normalization import normalize_for_clip
from regionclip_jax.structures import DetectionBatch, Detections


@flax.struct.dataclass
class Recognition:
    """The best class of every given box, and the image's best (box, class) pairs."""

    top_class: Int[Array, "B G"]
    top_score: Float[Array, "B G"]
    detections: Detections


def make_recognize_step(
    model: CLIP,
    *,
    temperature: float,
    max_detections: int,
    regions_per_chunk: int | None,
    roi_align: str,
) -> Callable[[dict, Float[Array, "C D"], DetectionBatch], Recognition]:
    """Builds ``(variables, class embeddings, batch) -> Recognition`` for the batch's own boxes."""

    def step(
        variables: dict, class_embeddings: Float[Array, "C D"], batch: DetectionBatch
    ) -> Recognition:
        pixels = normalize_for_clip(batch.images, batch.sizes)
        features = model.apply(variables, pixels, method=model.image_features)
        embeddings = encode_regions(
            model,
            variables,
            features.map,
            batch.boxes,
            regions_per_chunk=regions_per_chunk,
            implementation=roi_align,
        )
        logits = concept_logits(embeddings, class_embeddings, temperature)
        background = jnp.zeros((*logits.shape[:-1], 1))
        scores = jax.nn.softmax(jnp.concatenate([logits, background], -1), axis=-1)[..., :-1]
        scores = jnp.where(batch.box_mask[..., None], scores, -1.0)
        num_images, num_boxes, num_classes = scores.shape
        count = min(max_detections, num_boxes * num_classes)
        best, index = jax.lax.top_k(scores.reshape(num_images, -1), count)
        boxes = jnp.take_along_axis(batch.boxes, (index // num_classes)[..., None], axis=1)
        return Recognition(
            top_class=scores.argmax(-1),
            top_score=scores.max(-1),
            detections=Detections(
                boxes=boxes, scores=best, classes=index % num_classes, mask=best > 0
            ),
        )

    return step
