"""Compile a recipe's step for absent TPUs, and report its costs.

    python scripts/compile_for_tpu.py --topology=v5e:16x16 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50x4_cc3m --config.run.batch_size=768

Needs libtpu (`pip install -e ".[tpu]"`) and no TPU. The program is the one that the chips would
run. Memory and communication are the compiler's numbers, times are a roofline, not a measurement.
"""

import compiling

if __name__ == "__main__":
    compiling.run("v5e:4x4", "Kind of chip and grid, e.g. v5e:16x16.")
