"""Frozen norm of both trunks, conversion of our weights, and the runner of PyTorch."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.conversion.layouts import Layout, Origin


class FrozenNorm(nn.Module):
    """Batch norm with four constant vectors, with detectron2's choice of kernels."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        if not x.requires_grad:
            # One kernel; with gradients it would also compute those of the four vectors.
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
            )
        multiplier = self.weight * (self.running_var + 1e-5).rsqrt()
        offset = self.bias - self.running_mean * multiplier
        return x * multiplier.to(x.dtype)[:, None, None] + offset.to(x.dtype)[:, None, None]


def state_dict_of(variables: dict, origin: Callable[[str, int], Origin]) -> dict:
    """Convert our variables to the original tensors (the inverse of ``conversion.layouts``)."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten(jax.device_get(variables)).items():
        # PyTorch does not know the types of ml_dtypes; autocast casts again.
        leaf = np.asarray(leaf, np.float32)
        source = origin(path.partition("/")[2], leaf.ndim)
        if source.layout is Layout.CONVOLUTION:
            leaf = leaf.transpose(3, 2, 0, 1)
        elif source.layout is Layout.LINEAR:
            leaf = leaf.T
        parts.setdefault(source.name, {})[source.third or 0] = leaf
    return {
        name: torch.tensor(np.concatenate([thirds[third] for third in sorted(thirds)]))
        if len(thirds) > 1
        else torch.tensor(thirds[0])
        for name, thirds in parts.items()
    }


class TorchRunner:
    """Runner of PyTorch on JAX's kind of device and precision, with or without torch.compile."""

    def __init__(self, dtype: str, compiled: bool | None):
        kind = jax.devices()[0].platform
        if kind not in ("cpu", "gpu"):
            raise SystemExit(f"--torch: JAX runs on {kind}, where there is no PyTorch to compare")
        if kind == "gpu" and not torch.cuda.is_available():
            raise SystemExit("--torch: JAX runs on a GPU, but this PyTorch has no CUDA")
        self.device = torch.device("cuda" if kind == "gpu" else "cpu")
        self.is_bfloat16 = dtype == "bfloat16"
        self.compiled = kind == "gpu" if compiled is None else compiled
        self.num_threads = torch.get_num_threads()
        # TF32, like JAX's default precision on GPUs.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def tensor(self, array) -> torch.Tensor:
        return torch.tensor(np.asarray(array)).to(self.device)

    def place(self, module: nn.Module) -> nn.Module:
        module = module.to(self.device)
        if self.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        return module

    def autocast(self):
        if not self.is_bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False)

    def columns(
        self, make: Callable[[Callable], Callable], gradients: bool = False
    ) -> dict[str, Callable]:
        """Return the calls of the columns "torch" and, if enabled, "torch compiled".

        Args:
            make: compiler of functions (or the identity) -> call to time.
            gradients: the call computes gradients.
        """
        found = {"torch": self._waiting(make(lambda function: function), gradients)}
        if self.compiled:
            found["torch compiled"] = self._waiting(make(self.compile), gradients)
        return found

    def _waiting(self, work: Callable, gradients: bool) -> Callable:
        """Return ``work`` in this precision, which waits for its device."""

        def call():
            with self.autocast(), torch.set_grad_enabled(gradients):
                result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return call
