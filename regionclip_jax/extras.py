"""Optional packages: a job or command that needs some checks them before its first image."""

import importlib

from regionclip_jax.settings import UserError

# Extra of setup.cfg -> modules of its packages.
_MODULES = {
    "concepts": ("HanTa.HanoverTagger", "simplemma"),
    "hub": ("huggingface_hub",),
    "lvis": ("faster_coco_eval",),
    "mlflow": ("mlflow",),
    "onnx": ("jax2onnx",),
    "serve": ("h11", "python_multipart", "starlette", "uvicorn"),
    "siglip": ("sentencepiece",),
    "stablehlo": ("flatbuffers",),
    "supervision": ("supervision",),
    "video": ("av",),
    "wandb": ("wandb",),
}


class MissingExtra(UserError):
    """A package that a job needs is not installed, or cannot be imported."""


def require_extra(extra: str, purpose: str) -> None:
    """Import the packages of an extra.

    Args:
        extra: a key of ``_MODULES``.
        purpose: names the work that needs the packages, for the error.

    Raises:
        MissingExtra: a package cannot be imported; the message has the command that installs it.
    """
    for module in _MODULES[extra]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtra(
                f"{purpose} needs the extra {extra!r}: {module} cannot be imported ({error}); run "
                f'pip install -e ".[{extra}]" in the folder of regionclip_jax'
            ) from error
