"""Prompts per second of the text tower; ``scripts/benchmark_text.py`` times the tokenizer."""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.model_flops import count_model_flops
from benchmarks.random_weights import draw_weights
from benchmarks.timing import Work
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.steps.embed_step import make_embed_text_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="RN50", choices=sorted(PRESETS), metavar="NAME",
        help="preset of models/presets.py",
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=256, help="prompts of a call")


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    config = PRESETS[args.preset]
    variables = draw_weights(abstract_variables(config))
    tokens = made_up_tokens(args.prompts, config.text.context_length, config.text.vocab_size)
    step = make_embed_text_step(CLIP(config, dtype=jnp.dtype(args.dtype)))
    ours, theirs = jax.jit(step), {}
    if runner:
        from benchmarks.torch_clip import torch_clip

        model, their_tokens = torch_clip(config, variables, runner), runner.tensor(tokens).long()
        theirs = runner.columns(
            lambda compile_: functools.partial(compile_(model.encode_text), their_tokens)
        )
    tokens = jnp.array(tokens)
    yield Work(
        f"text tower, {args.prompts} prompts",
        lambda: ours(variables, tokens),
        theirs,
        items=args.prompts,
        unit="prompts",
        model_flops=lambda: count_model_flops(step, variables, tokens),
    )


def made_up_tokens(num: int, length: int, vocab_size: int) -> np.ndarray:
    """Draw captions of nine tokens between start and end token."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((num, length), np.int32)
    tokens[:, 1:10] = rng.integers(1, vocab_size - 2, (num, 9))
    tokens[:, 0], tokens[:, 10] = vocab_size - 2, vocab_size - 1
    return tokens
