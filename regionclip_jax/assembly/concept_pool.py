"""Embed names: the concept pool of pretraining, and the classes of an evaluation."""

import collections
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jaxtyping import Int

from regionclip_jax.artifacts.vocabulary import FILE_NAME, Vocabulary, describe_encoder
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.towers import TextTowerConfig
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.settings import (
    ConceptSettings,
    ConfigError,
    UserError,
    choose,
    config_context,
)
from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.steps.embed_step import make_embed_text_step
from regionclip_jax.text.names import read_names
from regionclip_jax.text.prompts import TEMPLATES, prompts_for
from regionclip_jax.text.tokenizer import Tokenizer, TokenizerSource

# The small CLIP of the synthetic experiment was not trained on prompts such as "itap of my ring".
PLAIN_TEMPLATES = ("{}", "a {}", "a photo of a {}", "there is a {}", "a picture with a {}")
_TEMPLATE_SETS = {"clip": TEMPLATES, "plain": PLAIN_TEMPLATES}
# A CPU is as fast in small calls of many widths, which leave less padding, and compiles faster.
_TOKENS_PER_CALL, _TOKENS_PER_CALL_ON_CPUS = 2**14, 2**10
_WIDTH_STEP, _WIDTH_STEP_ON_CPUS = 16, 4


def pool_names(settings: ConceptSettings, default: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the pool: from its file, or ``default`` without a file.

    Raises:
        ConfigError: the file is missing, or is not one of ``text.names``.
    """
    if not settings.names_file:
        if not default:
            raise ConfigError(
                "concepts.names_file: expected a text file with one concept a line; give "
                "--config.concepts.names_file=PATH"
            )
        return tuple(default)
    path = Path(settings.names_file)
    if not path.is_file():
        raise ConfigError(f"concepts.names_file: {path} does not exist; give an existing text file")
    with config_context("concepts.names_file"):
        return read_names(path)


def embed_names(
    model: CLIP,
    variables: dict,
    names: Sequence[str],
    templates: str,
    tokenizer: TokenizerSource | None = None,
) -> Vocabulary:
    """Embed every name: raw text features, averaged over the templates.

    Source: docs/reference/text.md#concept-embeddings. An embedding does not depend on the other
    names, bit for bit, because the shape of its call depends only on its own longest prompt. Except
    for the embeddings, memory does not grow with the number of names.

    Args:
        tokenizer: of the model; None is enough for one that reads no file.

    Raises:
        UserError: two names have the same tokens, see ``require_distinct``; or the tokenizer reads
            a file that is not given.
    """
    tokenize = (tokenizer or TokenizerSource(model.config.text.tokenizer)).load()
    require_distinct(names, templates, model.config.text, tokenize)
    chosen = choose(_TEMPLATE_SETS, templates, "templates")
    features = np.zeros((len(names), model.config.embed_dim), np.float32)
    began, done = time.monotonic(), 0
    for rows, tokens in _calls(names, chosen, model.config.text, tokenize):
        some = np.asarray(_embed_step(model)(variables, tokens), np.float32)
        some = some.reshape(-1, len(chosen), some.shape[-1])[: len(rows)]
        features[rows] = some.mean(1)
        done += len(rows)
        seconds_left = (time.monotonic() - began) / done * (len(names) - done)
        logging.log_every_n_seconds(
            logging.INFO, "embedded %d of %d names, %s left", 10,
            done, len(names), readable_seconds(seconds_left),
        )  # fmt: skip
    encoder = describe_encoder(model.config, variables["params"])
    return Vocabulary(tuple(names), features, tuple(chosen), encoder)


def require_distinct(
    names: Sequence[str], templates: str, text: TextTowerConfig, tokenize: Tokenizer
) -> None:
    """Refuse two names that the text tower cannot tell apart; warn of names that are cut.

    Names are equal to the tower if all their prompts have the same tokens: "25" and "2 5", or names
    that are longer than the context and differ only behind it.

    Raises:
        UserError: two names have the same tokens; the message has both.
    """
    chosen = choose(_TEMPLATE_SETS, templates, "templates")
    length = text.context_length
    first: dict[bytes, str] = {}
    cut: list[str] = []
    for name in names:
        prompts = prompts_for(name, chosen)
        tokens = tokenize(prompts, length)
        num_cut = 0
        if text.num_read(tokens) == length:
            # A prompt that fits has the same tokens in a longer context.
            longer = tokenize(prompts, length + 1)[:, :length]
            num_cut = int((longer != tokens).any(1).sum())
            if num_cut:
                cut.append(f"{_shortened(name)} in {num_cut} of {len(prompts)} prompts")
        before = first.setdefault(hashlib.blake2b(tokens.tobytes(), digest_size=16).digest(), name)
        if before != name:
            why = f"are equal in their first {length} tokens" if num_cut else "have the same tokens"
            raise UserError(
                f"names {_shortened(before)} and {_shortened(name)} {why}, so they would share one "
                "embedding; shorten or reword one, or remove it"
            )
    if cut:
        logging.warning(
            "%d of %d names are longer than the %d tokens of the text tower and are cut: %s%s",
            len(cut), len(names), length, "; ".join(cut[:5]), "; ..." if len(cut) > 5 else "",
        )  # fmt: skip


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:50]}...{name[-25:]}")


@functools.cache
def _embed_step(model: CLIP) -> Callable[[dict, np.ndarray], jax.Array]:
    return jax.jit(make_embed_text_step(model))


def _calls(
    names: Sequence[str], templates: Sequence[str], text: TextTowerConfig, tokenize: Tokenizer
) -> Iterator[tuple[list[int], Int[np.ndarray, "N L"]]]:
    """Yield rows of names and the tokens of all their prompts, in calls of few shapes.

    Columns without effect are cut; prompts are five times shorter than CLIP's context. The last
    call of a shape is padded with zeros.
    """
    num_tokens, step = _TOKENS_PER_CALL, _WIDTH_STEP
    if target_backend() == "cpu":
        num_tokens, step = _TOKENS_PER_CALL_ON_CPUS, _WIDTH_STEP_ON_CPUS
    waiting: dict[int, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)

    def call(width: int) -> tuple[list[int], np.ndarray]:
        rows, prompts = zip(*waiting.pop(width), strict=True)
        tokens = np.zeros((names_per_call(width) * len(templates), width), np.int32)
        tokens[: len(rows) * len(templates)] = np.concatenate(prompts)
        return list(rows), tokens

    def names_per_call(width: int) -> int:
        return max(1, num_tokens // (width * len(templates)))

    for row, name in enumerate(names):
        tokens = tokenize(prompts_for(name, templates), text.context_length)
        width = min(-(-text.num_read(tokens) // step) * step, text.context_length)
        waiting[width].append((row, tokens[:, :width]))
        if len(waiting[width]) == names_per_call(width):
            yield call(width)
    for width in sorted(waiting):
        yield call(width)


def cached_vocabulary(
    path: Path,
    model: CLIP,
    variables: dict,
    names: Sequence[str],
    templates: str,
    tokenizer: TokenizerSource | None = None,
) -> Vocabulary:
    """Return the vocabulary of these names, cached at ``path``; embed and save missing ones.

    Embeddings of the file are used only if this text tower made them with these templates.

    Args:
        tokenizer: as in ``embed_names``.

    Raises:
        UserError: two names have the same tokens, also if one of them is cached.
    """
    chosen = tuple(choose(_TEMPLATE_SETS, templates, "templates"))
    encoder = describe_encoder(model.config, variables["params"])
    known: dict[str, np.ndarray] = {}
    is_there = path.is_file()
    # No process may write before all have checked.
    barrier(f"looked for {path.name}")
    if is_there:
        found = Vocabulary.load(path)
        same_encoder = found.encoder["parameters_sha256"] == encoder["parameters_sha256"]
        if found.templates == chosen and same_encoder:
            if found.names == tuple(names):
                return found
            known = dict(zip(found.names, found.embeddings, strict=True))
    if new := [name for name in names if name not in known]:
        if known:
            tokenize = (tokenizer or TokenizerSource(model.config.text.tokenizer)).load()
            require_distinct(names, templates, model.config.text, tokenize)
        logging.info("%s: embedding %d of %d names", path, len(new), len(names))
        embedded = embed_names(model, variables, new, templates, tokenizer)
        known.update(zip(embedded.names, embedded.embeddings, strict=True))
    embeddings = np.stack([known[name] for name in names])
    vocabulary = Vocabulary(tuple(names), embeddings, chosen, encoder)
    if jax.process_index() == 0:
        vocabulary.save(path)
    return vocabulary


def export(vocabulary: Vocabulary, directory: Path) -> None:
    """Write the vocabulary of a model directory; every process may call it."""
    if jax.process_index() == 0:
        vocabulary.save(directory / FILE_NAME)
