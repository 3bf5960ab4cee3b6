"""Draw one caption of a record by the record's own generator.

Source: docs/reference/pretraining_data.md#captions.
"""

import re

import numpy as np

from regionclip_jax.data.sources.records import ImageTextRecord, RecordError
from regionclip_jax.text.prompts import TEMPLATES, fill_template

# Further characters are ignored: 77 tokens end long before.
_LONGEST = 10_000
# A false positive ("right next to", "left over") only prevents a mirrored image.
_DIRECTIONS = re.compile(r"\b(left|right)(most|hand|wards?)?\b", re.IGNORECASE)


def mentions_direction(caption: str) -> bool:
    """Return True for a caption with left or right, which a mirrored image would contradict."""
    return _DIRECTIONS.search(caption) is not None


def choose_caption(record: ImageTextRecord, rng: np.random.Generator, *, source: str) -> str:
    """Draw one caption that is not blank, or a prompt made of the tags.

    If a record has captions and tags, either is drawn with equal probability. The tags are
    shuffled, joined and put into a random template. (The reference trains on up to five captions
    per sample; here a sample has one, and later samples draw the others.)

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
    """Return False for a text of blanks, NULs and other control characters only."""
    return any(c.isprintable() and not c.isspace() for c in text[:_LONGEST])
