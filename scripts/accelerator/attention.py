"""Measure attention at the ViT's number of tokens: time, memory and error per implementation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from accelerator.measuring import free, measure
from accelerator.recorder import Recorder
from benchmarks.timing import Program, Work
from regionclip_jax.models.transformer_blocks import dot_product_attention

_CHUNK = 256


def implementations(tokens: int) -> dict[str, Callable]:
    """Return functions of (query, key, value, mask of keys) by name."""

    def ours(chunk):
        return lambda q, k, v, mask: dot_product_attention(q, k, v, mask[:, None], chunk)

    def jax_own(implementation):
        def attend(q, k, v, mask):
            return jax.nn.dot_product_attention(
                q, k, v, mask=mask[:, None, None], implementation=implementation
            )

        return attend

    found = {"all at once": ours(tokens), f"{_CHUNK} at a time": ours(min(_CHUNK, tokens // 2))}
    found["jax.nn, xla"] = jax_own("xla")
    if jax.default_backend() == "gpu":
        found["jax.nn, cudnn"] = jax_own("cudnn")
    return found


def run(recorder: Recorder) -> None:
    num, tokens, heads = (1, 40, 2) if recorder.small else (8, 2210, 12)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = num, tokens, heads, 64
    for dtype in (jnp.bfloat16, jnp.float32):
        arrays = [jax.random.normal(key, shape, dtype) for key in keys]
        # An image that covers four fifths of its canvas.
        mask = jnp.broadcast_to(jnp.arange(tokens) % 5 < 4, (num, tokens))
        exact = _exact(arrays, mask)
        for name, attend in implementations(tokens).items():
            label = f"{name}, {jnp.dtype(dtype).name}"
            if recorder.has_time(label, 4):
                _measure(recorder, label, attend, arrays, mask, exact)


def _both_ways(attend: Callable) -> Callable:
    def both(query, key, value, mask):
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, mask), query, key, value)
        return out, pull(jnp.ones_like(out))

    return both


def _exact(arrays, mask):
    """Return output and gradients for one image, in fp32 at the highest precision."""
    one = [x[:1].astype(jnp.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
        attend = implementations(one[0].shape[1])["all at once"]
        return jax.jit(_both_ways(attend))(*one, mask[:1])


def _measure(recorder: Recorder, label: str, attend: Callable, arrays, mask, exact) -> None:
    try:
        found = jax.jit(_both_ways(attend))(*(x[:1] for x in arrays), mask[:1])
    except Exception as error:
        recorder.add({"name": label, "error": f"{type(error).__name__}: {error}"[:800]})
        print(f"{label}: failed: {error}", flush=True)
        return
    errors = [
        float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    ]
    labels = {"error_forward": errors[0], "error_gradient": max(errors[1:])}
    for how, function in (("forward", attend), ("both ways", _both_ways(attend))):
        work = Work(f"{label}, {how}", Program(function, *arrays, mask))
        if not measure(recorder, work, 10, **labels):
            recorder.note(f"{label}, {how}: out of memory")
        free(work)
