"""The wall between host and device, as a bare accelerator machine meets it."""

import subprocess
import sys

# What the host side needs and such a machine may lack.
HOST_LIBRARIES = (
    "absl clu faster_coco_eval grain orbax PIL pycocotools ml_collections tensorflow "
    "tensorflow_datasets torch tensorboardX ftfy tokenizers"
)

DEVICE_SIDE = """
import importlib, importlib.abc, pkgutil, sys
import flax.linen, flax.struct, flax.traverse_util, jax, jaxtyping, numpy, optax
blocked = set(sys.argv[1].split())
# flax has imported some of these for itself (absl): what asks from here on is regionclip_jax.
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"the device side imported {name}", name=name)
sys.meta_path.insert(0, Refuse())
import regionclip_jax.structures
for room in ("ops", "models", "losses", "steps"):
    package = importlib.import_module(f"regionclip_jax.{room}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        print(module.name)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_device_side_imports_without_any_library_of_the_host():
    modules = run(DEVICE_SIDE, HOST_LIBRARIES).split()
    assert {"regionclip_jax.ops.roi_align", "regionclip_jax.steps.pretrain_step"} <= set(modules)


def test_importing_the_package_alone_imports_nothing_heavy():
    code = "import sys, regionclip_jax; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(code).split())
    assert not loaded & {"jax", "flax", "numpy", *HOST_LIBRARIES.split()}
