from regionclip_jax.compile_report.chips import CHIPS, peak_flops


def test_peaks_are_known_by_the_names_that_jax_gives_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert peak_flops("TPU v5 lite", "float32") == CHIPS["v5e"].flops
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") is peak_flops("cpu", "float32") is None
