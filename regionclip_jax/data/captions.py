"""Draw one caption of a record by the record's own generator.

Source: docs/reference/pretraining_data.md#captions.
"""

import re

import numpy as np

from regionclip_jax.data.records import ImageTextRecord, RecordError
from regionclip_jax.text.prompts import TEMPLATES, fill_template

# Characters of a caption that are looked at; 77 tokens are over long before.
_LONGEST = 10_000
# A false alarm ("right next to", "left over") costs a mirrored picture and nothing else.
_DIRECTIONS = re.compile(r"\b(left|right)(most|hand|wards?)?\b", re.IGNORECASE)


def mentions_direction(caption: str) -> bool:
    """Whether a caption tells left from right, so that a mirrored picture would belie it."""
    return _DIRECTIONS.search(caption) is not None


def choose_caption(record: ImageTextRecord, rng: np.random.Generator, *, source: str) -> str:
    """Draws one of the captions that are not blank, or a prompt made of the tags.

    Of a record with captions and tags each is taken with equal chance. The tags are shuffled,
    joined and put into a random template. (The reference trains on up to five captions of a visit;
    here a visit has one, and the others come at later visits.)

    Raises:
        RecordError: all captions are blank and there are no tags.
    """
    captions = [caption[:_LONGEST] for caption in record.captions if _has_words(caption)]
    tags = [tag[:_LONGEST] for tag in record.tags if _has_words(tag)]
    if not captions and not tags:
        found = f"{len(record.captions)} blank captions" if record.captions else "no caption"
        raise RecordError(source, record.key, f"{found}: expected one with words")
    if captions and (not tags or rng.random() < 0.5):
        return captions[int(rng.integers(len(captions)))]
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return fill_template(template, " ".join(tags[i] for i in rng.permutation(len(tags))))


def _has_words(text: str) -> bool:
    """Whether anything can be seen of a text: not of blanks, NULs and other control characters."""
    return any(c.isprintable() and not c.isspace() for c in text[:_LONGEST])
