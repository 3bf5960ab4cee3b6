"""Names to embeddings: the concept pool of pretraining and the classes of an evaluation."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder
from regionclip_jax.config import ConceptsSection, ConfigError
from regionclip_jax.jobs.assembly import blame, choose
from regionclip_jax.models.clip import CLIP
from regionclip_jax.reporting.progress import readable_seconds
from regionclip_jax.sharding.waiting import wait_for_all
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
    with blame(f"concepts.names_file: {path}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.split("\t")[0].split(",")[0].strip() for line in lines]
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        what = f"names {twice[:5]} come more than once" if twice else "no names"
        raise ConfigError(f"concepts.names_file: {path} holds {what}; expected one a line")
    return tuple(names)


def embed_names(model: CLIP, variables: dict, names: Sequence[str], templates: str) -> Vocabulary:
    """Raw text features of every name, averaged over the templates (spec: models_pretrain 2.5)."""
    chosen = choose(_TEMPLATE_SETS, templates, "templates")
    step = jax.jit(make_embed_text_step(model))
    prompts = [prompt for name in names for prompt in prompts_for(name, chosen)]
    tokens = tokenize(prompts, model.config.context_length)
    # What stands behind the end token never matters, so the columns no prompt reaches are cut:
    # prompts are five times shorter than the context.
    tokens = tokens[:, : -(-int((tokens > 0).sum(1).max()) // 8) * 8]
    per_call = _NAMES_PER_CALL * len(chosen)
    began, rows = time.monotonic(), []
    for start in range(0, len(tokens), per_call):
        some = np.zeros((per_call, tokens.shape[1]), np.int32)
        some[: len(tokens) - start] = tokens[start : start + per_call]
        rows.append(np.asarray(step(variables, some), np.float32))
        done = min(start + per_call, len(tokens))
        seconds_left = (time.monotonic() - began) / done * (len(tokens) - done)
        logging.log_every_n_seconds(
            logging.INFO, "embedded %d of %d prompts, %s left", 10,
            done, len(tokens), readable_seconds(seconds_left),
        )  # fmt: skip
    features = np.concatenate(rows)[: len(tokens)].reshape(len(names), len(chosen), -1)
    encoder = describe_encoder(model.config, variables["params"])
    return Vocabulary(tuple(names), features.mean(1), tuple(chosen), encoder)


def cached_vocabulary(
    path: Path,
    model: CLIP,
    variables: dict,
    names: Sequence[str],
    templates: str,
) -> Vocabulary:
    """The vocabulary at ``path`` if this text tower made it of these names, else a new one."""
    encoder = describe_encoder(model.config, variables["params"])
    is_there = path.is_file()
    # Nobody writes before all have looked.
    wait_for_all(f"looked for {path.name}")
    if is_there:
        known = Vocabulary.load(path)
        same_templates = known.templates == tuple(choose(_TEMPLATE_SETS, templates, "templates"))
        same_encoder = known.encoder["parameters_sha256"] == encoder["parameters_sha256"]
        if known.names == tuple(names) and same_templates and same_encoder:
            return known
    logging.info("%s: embedding %d names", path, len(names))
    vocabulary = embed_names(model, variables, names, templates)
    if jax.process_index() == 0:
        vocabulary.save(path)
    return vocabulary
