"""Make positions.npz with torch 2.13: a grid of positions resized as by three libraries.

open_clip's ``resize_pos_embed`` antialiases; Hugging Face's ``interpolate_pos_encoding`` (and
CLIPSelf) does not. Both interpolate bicubically between the centres of cells.
"""

import pathlib

import numpy as np
import torch

# (height, width): larger, smaller, and both at once.
SIZES = [(10, 13), (3, 4), (4, 9)]

grid = np.random.default_rng(0).standard_normal((6, 6, 4)).astype(np.float32)
arrays = {"grid": grid}
for height, width in SIZES:
    for antialias in (False, True):
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(grid).permute(2, 0, 1)[None],
            size=(height, width),
            mode="bicubic",
            align_corners=False,
            antialias=antialias,
        )
        rule = "bicubic_antialiased" if antialias else "bicubic"
        arrays[f"{rule}_{height}x{width}"] = resized[0].permute(1, 2, 0).numpy()
np.savez_compressed(pathlib.Path(__file__).with_name("positions.npz"), **arrays)
