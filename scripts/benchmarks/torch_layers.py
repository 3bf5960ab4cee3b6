"""The frozen norm that both trunks share, our weights as PyTorch's, and how PyTorch is run here."""

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
    """A batch norm whose four vectors never change; detectron2's choice of kernels."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        if not x.requires_grad:
            # One kernel; its gradient would be of all four vectors too.
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
            )
        multiplier = self.weight * (self.running_var + 1e-5).rsqrt()
        offset = self.bias - self.running_mean * multiplier
        return x * multiplier.to(x.dtype)[:, None, None] + offset.to(x.dtype)[:, None, None]


def state_dict_of(variables: dict, origin: Callable[[str, int], Origin]) -> dict:
    """Our variables as the tensors they are made of (``conversion.layouts``, backwards)."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten(jax.device_get(variables)).items():
        # Types that NumPy has from ml_dtypes are unknown to PyTorch; autocast casts again.
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
    """Where and how the PyTorch side runs: JAX's kind of device, its precision, compiled or not."""

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
        # TF32 where JAX uses it too: its default precision on GPUs.
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
        """Work of the columns "torch" and, if it is wanted, "torch compiled".

        Args:
            make: takes what compiles a function, or leaves it as it is, and gives the work.
            gradients: the work takes some.
        """
        found = {"torch": self._waiting(make(lambda function: function), gradients)}
        if self.compiled:
            found["torch compiled"] = self._waiting(make(self.compile), gradients)
        return found

    def _waiting(self, work: Callable, gradients: bool) -> Callable:
        """``work`` in this precision, until its device is done."""

        def call():
            with self.autocast(), torch.set_grad_enabled(gradients):
                result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return call
