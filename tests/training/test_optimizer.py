import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.training import optimizer, schedules


def tree(seed, scale=1.0):
    draws = np.random.default_rng(seed)
    return {
        "visual": {
            "conv": {"kernel": (scale * draws.normal(size=(3, 4))).astype(np.float32)},
            "norm": {"scale": (scale * draws.normal(size=(4,))).astype(np.float32)},
        },
        "logit_scale": np.float32(scale * draws.normal()),
    }


def reference_sgd(params, gradients, rates, momentum, decay, clip):
    """Apply docs/reference/pretraining.md#solver in a loop over tensors (lists of flat leaves)."""
    buffers = [None] * len(params)
    for step, gradient in enumerate(gradients):
        for i, g in enumerate(gradient):
            g = g.astype(np.float64)
            g = g * min(1.0, clip / (np.linalg.norm(np.ravel(g)) + 1e-6))
            g = g + decay[i] * params[i]
            buffers[i] = g if buffers[i] is None else momentum * buffers[i] + g
            params[i] = params[i] - rates[step] * buffers[i]
    return params


def train(transform, params, gradients):
    state = transform.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params, state


def test_three_sgd_steps_equal_the_formula_of_the_reference():
    schedule = schedules.warmup_multistep(
        0.5, boundaries=(2,), gamma=0.1, warmup_steps=2, warmup_factor=0.001
    )
    params, gradients = tree(0), [tree(1, 10.0), tree(2, 0.1), tree(3, 3.0)]
    sgd = optimizer.make_optimizer(
        "sgd",
        schedule,
        momentum=0.9,
        weight_decay=0.01,
        clip_per_tensor_norm=5.0,
        no_decay_patterns=[r"norm/"],
    )
    ours, _ = train(sgd, params, gradients)
    leaves, paths = jax.tree.leaves(params), list(jax.tree_util.tree_leaves_with_path(params))
    decay = [0.0 if "norm" in str(keys) else 0.01 for keys, _ in paths]
    expected = reference_sgd(
        [leaf.astype(np.float64) for leaf in leaves],
        [jax.tree.leaves(g) for g in gradients],
        [0.5 * 0.001, 0.5 * 0.5005, 0.05],
        0.9,
        decay,
        5.0,
    )
    for ours_leaf, expected_leaf in zip(jax.tree.leaves(ours), expected, strict=True):
        np.testing.assert_allclose(ours_leaf, expected_leaf, rtol=2e-6, atol=2e-6)


def test_clipping_is_per_tensor_and_does_not_change_small_tensors():
    gradients = {"large": jnp.full((100,), 10.0), "small": jnp.array([3.0, 4.0])}
    clipped, _ = optimizer.clip_by_tensor_norm(5.0).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(jnp.linalg.norm(clipped["large"]), 5.0, rtol=1e-6)
    # norm exactly at the limit: the coefficient is 5 / (5 + 1e-6), as in the reference
    np.testing.assert_allclose(clipped["small"], gradients["small"], rtol=1e-6)


def test_a_zero_gradient_stays_zero_under_clipping():
    clipped, _ = optimizer.clip_by_tensor_norm(5.0).update(
        {"a": jnp.zeros((2, 2))}, optax.EmptyState()
    )
    assert (clipped["a"] == 0).all()


def test_adamw_without_patterns_equals_optax_adamw():
    params, gradients = tree(0), [tree(1), tree(2)]
    ours, _ = train(
        optimizer.make_optimizer("adamw", lambda step: 0.01, weight_decay=0.1), params, gradients
    )
    theirs, _ = train(optax.adamw(0.01, weight_decay=0.1), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_a_pattern_that_matches_nothing_is_refused():
    transform = optimizer.make_optimizer(
        "sgd", lambda step: 0.1, weight_decay=0.0, no_decay_patterns=["stemm"]
    )
    with pytest.raises(ValueError, match="'stemm' matches none of the 3 parameters"):
        transform.init(tree(0))


def test_an_unknown_kind_is_refused():
    with pytest.raises((ValueError, TypeError), match="'sgd'.*'adamw'"):
        optimizer.make_optimizer("lamb", lambda step: 0.1, weight_decay=0.0)


def test_two_adamw_steps_equal_the_formula_with_their_own_beta2_and_epsilon():
    params, gradients = tree(0), [tree(1, 1e-2), tree(2, 1e-2)]
    adamw = optimizer.make_optimizer(
        "adamw",
        optax.constant_schedule(0.1),
        weight_decay=0.3,
        beta2=0.98,
        epsilon=1e-3,
        no_decay_patterns=["scale$"],
    )
    actual, _ = train(adamw, params, gradients)
    for keys, start in jax.tree_util.tree_leaves_with_path(params):
        expected, mean, square = np.float64(start), 0.0, 0.0
        decay = 0.3 if "kernel" in str(keys) else 0.0
        for step, gradient in enumerate(gradients, start=1):
            g = np.float64(dict(jax.tree_util.tree_leaves_with_path(gradient))[keys])
            mean, square = 0.9 * mean + 0.1 * g, 0.98 * square + 0.02 * g**2
            direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.98**step)) + 1e-3)
            expected = expected - 0.1 * (direction + decay * expected)
        found = dict(jax.tree_util.tree_leaves_with_path(actual))[keys]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
