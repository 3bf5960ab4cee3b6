"""Write the small SigLIPs of the parity tests: files, configurations and outputs.

    PYTHONPATH=tests:. python tests/golden/make_siglip.py

needs torch, transformers 5.24, timm 1.0.31, open_clip 3.3 and safetensors; it reads no network.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

import siglip_models as models

HERE = Path(__file__).parent
# Vocabularies of the sizes of ``make_siglip_vocabularies.py``.
HUGGINGFACE = models.Sizes("", 8, 40, 24, 3, 34, 2, 420, 16, 20, 2, 28, 2)
OPEN_CLIP = models.Sizes(
    "vit_base_patch16_siglip_224", 16, 48, 24, 12, 38, 2, 110, 16, 20, 4, 26, 2
)
OTHER = {"huggingface": (24, 64), "open_clip": (32, 96)}


def main() -> None:
    sizes = {"huggingface": HUGGINGFACE, "open_clip": OPEN_CLIP}
    hf, oc = models.huggingface(HUGGINGFACE), models.OpenClip(OPEN_CLIP, tanh_text=False)
    made = {
        "huggingface": (hf, models.huggingface_files(hf), models.huggingface_outputs),
        "open_clip": (oc, models.open_clip_files(OPEN_CLIP, False), models.open_clip_outputs),
    }
    configurations = {}
    for library, (model, files, outputs) in made.items():
        inputs = models.inputs(sizes[library], OTHER[library])
        found = outputs(model, *inputs)
        arrays = dict(zip(("pixels", "other_pixels", "tokens"), inputs, strict=True))
        np.savez_compressed(HERE / f"siglip_{library}.npz", **arrays, **found._asdict())
        with tempfile.TemporaryDirectory() as folder:
            path = models.save(model, files, Path(folder), "model.safetensors")
            # With the permissions of a new file; safetensors writes a private one.
            content = path.read_bytes()
            (HERE / f"siglip_{library}.safetensors").write_bytes(content)
        configurations[library] = files
    text = json.dumps(configurations, indent=1)
    (HERE / "siglip_configurations.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
