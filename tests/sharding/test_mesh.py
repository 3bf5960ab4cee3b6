import types

import jax
import numpy as np
import pytest

from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS, make_mesh, require_divisible


@pytest.mark.parametrize(("fsdp", "data"), [(1, 8), (2, 4), (8, 1)])
def test_all_devices_form_two_axes_in_their_order(fsdp, data):
    mesh = make_mesh(fsdp=fsdp)
    assert dict(mesh.shape) == {DATA_AXIS: data, FSDP_AXIS: fsdp}
    assert list(mesh.devices.flat) == jax.devices()
    assert make_mesh(fsdp=fsdp, devices=jax.devices()[::-1]) == mesh


@pytest.mark.parametrize("fsdp", [3, 16])
def test_an_fsdp_size_that_does_not_divide_the_devices_is_refused_with_valid_sizes(fsdp):
    message = rf"{fsdp} does not divide the 8 devices \(cpu\).* one of \[1, 2, 4, 8\]"
    with pytest.raises(ValueError, match=message):
        make_mesh(fsdp=fsdp)


def test_processes_with_unequal_numbers_of_devices_are_refused():
    devices = [types.SimpleNamespace(process_index=n // 4, id=n) for n in range(6)]
    mesh = types.SimpleNamespace(devices=np.array(devices), size=6)
    with pytest.raises(ValueError, match="process 1 has 2 devices, process 0 has 4"):
        require_divisible(12, mesh)


@pytest.mark.parametrize(("batch_size", "near"), [(4, "8"), (12, "8 or 16")])
def test_a_batch_size_that_the_devices_do_not_divide_is_refused_with_the_remedy(batch_size, near):
    message = (
        rf"batch size {batch_size} .* among 8 devices \(cpu\); .*multiple of 8, such as {near}$"
    )
    with pytest.raises(ValueError, match=message):
        require_divisible(batch_size, make_mesh(fsdp=2))
