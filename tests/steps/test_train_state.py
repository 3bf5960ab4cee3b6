import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.steps.train_state import (
    apply_gradients,
    create_train_state,
    split_parameters,
    step_key,
)

PARAMS = {
    "visual": {"stem": {"kernel": jnp.ones(2)}, "layer1": {"kernel": jnp.ones(3)}},
    "logit_scale": jnp.zeros(()),
}


def test_patterns_split_parameters_and_the_state_joins_them():
    trained, frozen = split_parameters(PARAMS, ["^logit_scale$", "stem"])
    assert trained == {"visual": {"layer1": PARAMS["visual"]["layer1"]}}
    assert frozen == {
        "visual": {"stem": PARAMS["visual"]["stem"]}, "logit_scale": PARAMS["logit_scale"]
    }  # fmt: skip
    optimizer = optax.sgd(0.5)
    state = create_train_state(
        {"params": PARAMS, "batch_stats": {"mean": 1}}, ["^logit_scale$", "stem"], optimizer
    )
    assert state.variables == {"params": PARAMS, "batch_stats": {"mean": 1}}
    new = apply_gradients(state, {"visual": {"layer1": {"kernel": jnp.ones(3)}}}, optimizer)
    assert new.step == 1 and new.batch_stats == {"mean": 1}
    np.testing.assert_array_equal(new.params["visual"]["layer1"]["kernel"], 0.5)
    assert new.frozen_params is state.frozen_params


def test_frozen_parameters_have_no_optimizer_state():
    optimizer = optax.sgd(0.5, momentum=0.9)
    state = create_train_state({"params": PARAMS, "batch_stats": {}}, ["layer1"], optimizer)
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(state.opt_state)}
    assert (2,) in shapes and (3,) not in shapes


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="'visual/stam' matches none of the 3 parameters"):
        split_parameters(PARAMS, ["visual/stam"])


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="leave nothing to train"):
        split_parameters(PARAMS, ["visual", "logit"])


def test_the_key_of_a_step_depends_on_seed_and_step_only():
    key = step_key(3, jnp.array(7))
    assert key == step_key(3, jnp.array(7))
    assert key != step_key(3, jnp.array(8)) and key != step_key(4, jnp.array(7))
