import jax
import pytest

from regionclip_jax.sharding.mesh import DATA_AXIS, make_mesh


def test_all_devices_form_one_data_axis():
    mesh = make_mesh(16)
    assert dict(mesh.shape) == {DATA_AXIS: 8}
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize("batch_size", [4, 12])
def test_a_batch_that_does_not_divide_among_the_devices_is_refused_with_the_remedy(batch_size):
    message = rf"batch size {batch_size} does not divide among 8 devices \(cpu\); .*multiple of 8"
    with pytest.raises(ValueError, match=message):
        make_mesh(batch_size)
