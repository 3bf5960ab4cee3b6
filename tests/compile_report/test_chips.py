from regionclip_jax.compile_report.chips import CHIPS, peak_flops


def test_peak_rates_are_looked_up_by_the_device_names_of_jax():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert peak_flops("TPU v5 lite", "float32") == CHIPS["v5e"].flops
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") is peak_flops("cpu", "float32") is None
