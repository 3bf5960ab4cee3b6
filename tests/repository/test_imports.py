"""The device-side packages import no library of the host side."""

import subprocess
import sys

# An accelerator machine without the host side may lack these libraries.
HOST_LIBRARIES = (
    "absl clu faster_coco_eval grain orbax PIL pycocotools ml_collections tensorflow "
    "tensorflow_datasets torch tensorboardX ftfy tokenizers"
)

DEVICE_SIDE = """
import importlib, importlib.abc, pkgutil, sys
import flax.linen, flax.struct, flax.traverse_util, jax, jaxtyping, numpy, optax
blocked = set(sys.argv[1].split())
# flax imports some of these (absl). Later imports of them come from regionclip_jax.
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"the device side imported {name}", name=name)
sys.meta_path.insert(0, Refuse())
import regionclip_jax.structures
for folder in ("ops", "models", "losses", "steps"):
    package = importlib.import_module(f"regionclip_jax.{folder}")
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


def test_the_device_side_is_imported_without_host_libraries():
    modules = run(DEVICE_SIDE, HOST_LIBRARIES).split()
    assert {"regionclip_jax.ops.roi_align", "regionclip_jax.steps.pretrain_step"} <= set(modules)


def test_importing_only_the_package_imports_no_large_library():
    code = "import sys, regionclip_jax; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(code).split())
    assert not loaded & {"jax", "flax", "numpy", *HOST_LIBRARIES.split()}
