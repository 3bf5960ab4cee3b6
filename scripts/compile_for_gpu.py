"""Compiles a recipe's step for GPUs that are not here, and says what it will cost.

    python scripts/compile_for_gpu.py --topology=h200:8 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50_coco

Needs JAX's CUDA plugin (`pip install -e ".[gpu]"`) and neither a GPU nor a driver. The program is
nearly the one that GPUs would run: kernels that XLA chooses by trying them out (tiles of matrix
products in Triton, algorithms of convolutions and the memory they work in) are left at their
defaults. Memory and what travels are the compiler's numbers, times are a roofline: no measurement.
"""

import compiling

if __name__ == "__main__":
    compiling.run("h100:8", "Kind and number, e.g. h200:8 (of one host) or h100:4x8 (of four).")
