"""Report of a conversion: the tensors that were used, and those that were not."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Set
from pathlib import Path

from regionclip_jax.artifacts.model_card import LocalizerCard, ModelCard

# Bookkeeping beside the weights in CLIP's files: docs/reference/checkpoints.md#prefixes.
_BOOKKEEPING = re.compile(
    r"(.*\.)?(num_batches_tracked|input_resolution|context_length|vocab_size|position_ids|attn_mask"
    r"|pixel_mean|pixel_std|cell_anchors\.\d+|rope\.freqs_(cos|sin))"
)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Report of a conversion; ``bookkeeping`` and ``unused`` are tensors that were not used."""

    card: ModelCard | LocalizerCard
    num_used: int
    bookkeeping: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return a text of the architecture, the counts, and the unused tensors by prefix."""
        lines = [
            f"architecture: {self.card.label}",
            f"tensors: {self.num_used} used, {len(self.bookkeeping)} of bookkeeping, "
            f"{len(self.unused)} others unused",
        ]
        groups: dict[str, list[str]] = {}
        for name in self.unused:
            groups.setdefault(name.split(".")[0], []).append(name)
        for first, names in sorted(groups.items()):
            shown = names[0] if len(names) == 1 else f"{first}.* ({len(names)}): {names[0]} ..."
            lines.append(f"unused: {shown}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def report(
    card: ModelCard | LocalizerCard, tensors: Iterable[str], taken: Set[str], notes: Iterable[str]
) -> Conversion:
    """Return the report of a file whose tensors have these names, of which some were taken."""
    left = [name for name in tensors if name not in taken]
    return Conversion(
        card,
        len(taken),
        tuple(filter(is_bookkeeping, left)),
        tuple(name for name in left if not is_bookkeeping(name)),
        tuple(notes),
    )


def is_bookkeeping(name: str) -> bool:
    """Return True for a tensor that stands beside weights and is none."""
    return _BOOKKEEPING.fullmatch(name) is not None


def origin_of(path: Path) -> dict[str, str]:
    """Return name and hash of a source file, as cards state them."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
