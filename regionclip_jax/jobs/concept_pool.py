"""Names to embeddings: the concept pool of pretraining and the classes of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder
from regionclip_jax.config import ConceptsSection, ConfigError
from regionclip_jax.jobs.assembly import choose
from regionclip_jax.models.clip import CLIP
from regionclip_jax.steps.embed_step import make_embed_text_step
from regionclip_jax.text.prompts import TEMPLATES, prompts_for
from regionclip_jax.text.tokenizer import tokenize

# The small CLIP of the embedded experiment has never read "itap of my origami ring".
PLAIN_TEMPLATES = ("{}", "a {}", "a photo of a {}", "there is a {}", "a picture with a {}")
_TEMPLATE_SETS = {"clip": TEMPLATES, "plain": PLAIN_TEMPLATES}
_NAMES_PER_CALL = 8


def read_names(section: ConceptsSection, default: Sequence[str]) -> tuple[str, ...]:
    """Names of the pool: of its file, one a line, or the given ones when no file is named.

    Raises:
        ConfigError: the file is missing or holds no names, or a name twice.
    """
    if not section.names_file:
        if not default:
            raise ConfigError(
                "concepts.names_file: expected a text file with one concept a line; give "
                "--config.concepts.names_file=PATH"
            )
        return tuple(default)
    path = Path(section.names_file)
    if not path.is_file():
        raise ConfigError(f"concepts.names_file: {path} does not exist; give an existing text file")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.split("\t")[0].split(",")[0].strip() for line in lines]
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        what = f"names {twice[:5]} come more than once" if twice else "no names"
        raise ConfigError(f"concepts.names_file: {path} holds {what}; expected one a line")
    return tuple(names)


def embed_names(
    model: CLIP, variables: dict, names: Sequence[str], templates: str, context_length: int
) -> Vocabulary:
    """Raw text features of every name, averaged over the templates (spec: models_pretrain 2.5)."""
    chosen = choose(_TEMPLATE_SETS, templates, "templates")
    step = jax.jit(make_embed_text_step(model))
    rows = []
    for start in range(0, len(names), _NAMES_PER_CALL):
        some = names[start : start + _NAMES_PER_CALL]
        texts = [text for name in some for text in prompts_for(name, chosen)]
        tokens = np.zeros((_NAMES_PER_CALL * len(chosen), context_length), np.int32)
        tokens[: len(texts)] = tokenize(texts, context_length)
        features = np.asarray(step(variables, tokens), np.float32)[: len(texts)]
        rows.append(features.reshape(len(some), len(chosen), -1).mean(1))
    encoder = describe_encoder(model.config, variables["params"])
    return Vocabulary(tuple(names), np.concatenate(rows), tuple(chosen), encoder)


def cached_vocabulary(
    path: Path,
    model: CLIP,
    variables: dict,
    names: Sequence[str],
    templates: str,
    context_length: int,
) -> Vocabulary:
    """The vocabulary at ``path`` if this text tower made it of these names, else a new one."""
    encoder = describe_encoder(model.config, variables["params"])
    if path.is_file():
        known = Vocabulary.load(path)
        same_templates = known.templates == tuple(choose(_TEMPLATE_SETS, templates, "templates"))
        same_encoder = known.encoder["parameters_sha256"] == encoder["parameters_sha256"]
        if known.names == tuple(names) and same_templates and same_encoder:
            return known
    logging.info("%s: embedding %d names", path, len(names))
    vocabulary = embed_names(model, variables, names, templates, context_length)
    if jax.process_index() == 0:
        vocabulary.save(path)
    return vocabulary
