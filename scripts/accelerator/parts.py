"""Parts of the check, most valuable first."""

import dataclasses
import importlib.util


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of the check: module ``accelerator.<name>`` with a function ``run(recorder)``."""

    name: str
    meaning: str
    # Seconds of a budget of 420; unused time goes to the next parts.
    seconds: float
    # Least seconds; with fewer the part is not started.
    least: float
    # Required packages, and packages for optional measurements.
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()

    def missing(self) -> tuple[list[str], list[str]]:
        """Return the packages of ``needs`` and of ``wants`` that cannot be imported."""
        return missing(self.needs), missing(self.wants)


def missing(packages: tuple[str, ...]) -> list[str]:
    """Return the packages that this interpreter cannot import."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


TORCH = ("torch", "torchvision")
BASE = ("jax", "flax", "optax", "numpy", "jaxtyping", "orbax")

PARTS = (
    Part("facts", "device, versions, rates of products and copies", 20, 5),
    Part("parity", "arrays of the reference through ops, towers, steps, detection", 85, 15),
    Part("ops", "RoIAlign, NMS, soft-NMS, attention, and PyTorch's", 50, 10, wants=TORCH),
    Part("pretrain", "the pretraining step and its parts, and PyTorch's", 110, 20, wants=TORCH),
    Part("detect", "detection and its stages, and PyTorch's", 60, 15, wants=TORCH),
    Part("profile", "the 25 kernels with the most time", 30, 10),
    Part("attention", "implementations of attention", 20, 8),
    Part(
        "train", "a real job that is killed and resumed", 45, 20,
        needs=("grain", "array_record", "cloudpickle", "portpicker", "clu", "ml_collections",
               "absl", "packaging", "tensorboardX", "PIL", "pycocotools", "ftfy",
               "tokenizers"),
    ),
)  # fmt: skip
