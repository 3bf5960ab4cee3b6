import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.training.initialization import draw_parameters, merge_parameters


def abstract(**shapes):
    return {
        "visual": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    }


def test_tensors_are_merged_by_path_and_cast_to_the_target_dtype():
    source = {"visual": {"b": np.ones((3,), np.float16), "a": np.zeros((2, 2), np.float32)}}
    merged = merge_parameters(abstract(a=(2, 2), b=(3,)), source, "teacher/")
    assert list(merged["visual"]) == ["a", "b"]
    assert merged["visual"]["b"].dtype == jnp.float32
    np.testing.assert_array_equal(merged["visual"]["b"], 1)


def test_missing_unused_and_misshapen_tensors_are_all_listed():
    source = {
        "visual": {"b": np.zeros((4,), np.float32), "extra": np.zeros(1), "c": np.zeros(2, int)}
    }
    with pytest.raises(ValueError) as caught:
        merge_parameters(abstract(a=(2,), b=(3,), c=(2,)), source, "teacher/card.json")
    message = str(caught.value)
    assert message.startswith("teacher/card.json:")
    assert "1 missing there: visual/a" in message
    assert "1 there but not in the model: visual/extra" in message
    assert "visual/b (expected float32[3], found float32[4])" in message
    assert "visual/c (expected float32[2], found int64[2])" in message


def test_a_long_list_is_shortened_with_the_number_of_the_rest():
    with pytest.raises(ValueError, match=r"25 missing there: visual/a00, .*visual/a09 and 15 more"):
        merge_parameters(abstract(**{f"a{i:02}": (1,) for i in range(25)}), {}, "x")


def initialize(num_features, key):
    """Draw scaled normal values, as the initialisers of the modules do."""
    kernel_key, stem_key = jax.random.split(key)
    kernel = jax.random.truncated_normal(kernel_key, -2.0, 2.0, (3, num_features)) / 3**0.5
    return {"kernel": kernel, "stem": jax.random.normal(stem_key, (num_features,))}


def test_drawn_parameters_equal_those_of_the_function():
    key = jax.random.key(3)
    parameters, expected = draw_parameters(initialize, 5, key), initialize(5, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parameters, expected
    )
    again = draw_parameters(initialize, 5, key)
    jax.tree.map(np.testing.assert_array_equal, again, parameters)


def test_drawn_parameters_have_abstract_values():
    shapes = jax.eval_shape(lambda: draw_parameters(initialize, 5, jax.random.key(3)))
    assert {name: x.shape for name, x in shapes.items()} == {"kernel": (3, 5), "stem": (5,)}
