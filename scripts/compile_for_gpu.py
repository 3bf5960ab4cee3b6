"""Compile a recipe's step for absent GPUs, and report its costs.

    python scripts/compile_for_gpu.py --topology=h200:8 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50_coco

Needs JAX's CUDA plugin (`pip install -e ".[gpu]"`), but no GPU and no driver. The program is nearly
the one that GPUs would run. Autotuned kernels (tiles of matrix products in Triton, algorithms and
workspaces of convolutions) keep their defaults. Memory and communication are the compiler's
numbers, times are a roofline, not a measurement.
"""

import compiling

if __name__ == "__main__":
    compiling.run("h100:8", "Kind and number, e.g. h200:8 (of one host) or h100:4x8 (of four).")
