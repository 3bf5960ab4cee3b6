"""Layers of ResNets: padded convolution, 2x2 average pool, rectifier.

The convolution has a kernel gradient that is fast on CPU too.

XLA computes the gradient of a kernel as a convolution with a window as large as the map. For large
maps its CPU backend takes ten times as long for that as for the forward pass, and longer in a loop.
Here the CPU sums matrix products over pieces of the map that stay in the cache: the same sums in
another order.

A kernel of one cell is a matrix product. JAX computes its gradient as [out, in], for which XLA's
CPU backend transposes the incoming gradient and its producers, column by column. This takes up to
2.6 times as long for the whole backward pass. Other backends keep XLA's gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.ops.backend import target_backend

# Cells of all images that one product sums over: some hundred kilobytes per factor.
_CELLS_AT_ONCE = 2048
_IMAGES_AT_ONCE = 32
# Below this many channels XLA's own gradient is as fast.
_NARROW = 32


def convolve(
    x: Float[Array, "N H W in"], kernel: Float[Array, "k k in out"], stride: int = 1
) -> Float[Array, "N h w out"]:
    """Convolve with an odd kernel, padded by half of it: stride 1 keeps the size. NHWC."""
    if kernel.shape[0] == 1:
        x = x[:, ::stride, ::stride]
        return _mix_channels(x, kernel) if target_backend() == "cpu" else x @ kernel[0, 0]
    narrow = min(kernel.shape[2:]) < _NARROW
    if stride == 1 and not narrow and target_backend() == "cpu":
        return _with_products(x, kernel)
    return _padded(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_multiplier(
    convolve: Callable,
    x: Float[Array, "N H W channels"],
    kernel: Float[Array, "k k in out"],
    multiplier: Float[Array, " out"],
) -> Float[Array, "N h w outs"]:
    """Return ``convolve(x, kernel)`` times the multiplier of each output channel.

    The forward pass multiplies the kernel, a smaller array than the map. The backward pass
    multiplies the gradient of the map. The kernel's gradient is then a plain convolution, and
    devices sum it once where steps accumulate it in a loop.

    Args:
        convolve: linear in both; may repeat the output channels (``ops.blocks``).
        kernel: in the type of ``x``; multiplied in fp32.
    """
    return convolve(x, (kernel * multiplier).astype(x.dtype))


def _with_multiplier_forward(convolve, x, kernel, multiplier):
    return with_multiplier(convolve, x, kernel, multiplier), (x, kernel, multiplier)


def _with_multiplier_backward(convolve, kept, gradient):
    x, kernel, multiplier = kept
    _, pull_back = jax.vjp(convolve, x, kernel)
    times = gradient.shape[-1] // multiplier.shape[0]
    for_x, for_kernel = pull_back(gradient * jnp.tile(multiplier, times).astype(gradient.dtype))
    # A frozen norm does not use this gradient, so XLA does not compute it.
    _, before_multiplier = pull_back(gradient)
    for_multiplier = (before_multiplier * kernel).astype(jnp.float32).sum((0, 1, 2))
    return for_x, for_kernel, for_multiplier.astype(multiplier.dtype)


with_multiplier.defvjp(_with_multiplier_forward, _with_multiplier_backward)


def _padded(x, kernel, stride: int):
    half = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(half, half)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def _mix_channels(x, kernel):
    return x @ kernel[0, 0]


def _mix_channels_forward(x, kernel):
    return x @ kernel[0, 0], (x, kernel)


def _mix_channels_backward(kept, gradient):
    x, kernel = kept
    for_kernel = jnp.einsum("...i,...o->io", x, gradient, preferred_element_type=jnp.float32)
    return gradient @ kernel[0, 0].T, for_kernel[None, None].astype(kernel.dtype)


_mix_channels.defvjp(_mix_channels_forward, _mix_channels_backward)


@jax.custom_vjp
def _with_products(x, kernel):
    return _padded(x, kernel, 1)


def _forward(x, kernel):
    return _padded(x, kernel, 1), (x, kernel)


def _backward(kept, gradient):
    x, kernel = kept
    _, pull_back = jax.vjp(lambda x: _padded(x, kernel, 1), x)
    return *pull_back(gradient), _kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype)


_with_products.defvjp(_forward, _backward)


def _kernel_gradient(
    x: Float[Array, "N H W in"], gradient: Float[Array, "N H W out"], size: int
) -> Float[Array, "k k in out"]:
    """Return the sum over cells of each neighbour's value times the output cell's gradient.

    The rows of a padded map are laid end to end, so each neighbour lies at a fixed distance; the
    gradient of padding cells is zero. A piece is a stretch of such maps of several images.
    """
    num, height, width, channels = x.shape
    half, row = size // 2, width + size - 1
    cells = height * row
    groups = -(-num // max(_IMAGES_AT_ONCE, _CELLS_AT_ONCE // cells))
    num_images = -(-num // groups)
    length = min(-(-_CELLS_AT_ONCE // num_images), cells)
    stretches = -(-cells // length)
    reach = (size - 1) * (row + 1)
    absent = (0, num_images * groups - num)

    def laid_out(maps, length):
        flat = maps.reshape(num_images, groups, -1, maps.shape[-1])[:, :, :length]
        return jnp.pad(flat, [(0, 0), (0, 0), (0, length - flat.shape[2]), (0, 0)])

    held = jnp.pad(x, [absent, (half, half), (half, half), (0, 0)])
    # Channels first: a shifted stretch is contiguous and enters the product without a copy.
    held = laid_out(held, stretches * length + reach).transpose(1, 3, 0, 2)
    asked = jnp.pad(gradient, [absent, (0, 0), (0, size - 1), (0, 0)])
    asked = laid_out(asked, stretches * length)
    distances = [i * row + j for i in range(size) for j in range(size)]

    def add_piece(total, index):
        group, start = index // stretches, index % stretches * length
        around = jax.lax.dynamic_slice(
            held, (group, 0, 0, start), (1, channels, num_images, length + reach)
        )[0]
        wanted = jax.lax.dynamic_slice(
            asked, (0, group, start, 0), (num_images, 1, length, asked.shape[-1])
        )[:, 0]
        products = [
            jnp.einsum(
                "int,nto->io",
                around[:, :, distance : distance + length],
                wanted,
                preferred_element_type=jnp.float32,
            )
            for distance in distances
        ]
        return total + jnp.stack(products), None

    nothing = jnp.zeros((size * size, channels, gradient.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add_piece, nothing, jnp.arange(groups * stretches))
    return total.reshape(size, size, channels, -1)


def average_pool_2x2(x: Float[Array, "N H W channels"]) -> Float[Array, "N H2 W2 channels"]:
    """Pool 2x2 averages with stride 2; an odd last row or column is dropped, as in torch."""
    num, height, width, channels = x.shape
    if target_backend() == "tpu":
        # TPUs store the last two axes in tiles of 8 x 128, so an axis of pairs would be padded to
        # eight. Compiled for v5e, a trunk of RN50 moves 29.9 GB with pairs and 24.3 GB this way.
        ones = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, ones, ones, "VALID") * 0.25
    # On CPU the gradient of windows takes several times longer than that of reshape and mean.
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(num, height // 2, 2, width // 2, 2, channels).mean((2, 4))


@jax.custom_vjp
def relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return ``max(x, 0)``; its gradient at 0 is 0, as in torch.

    JAX's gradient tests the sign of the input, so the input is kept beside the output, which the
    next layer keeps anyway. The output has the same positive cells. The input (of a product, a norm
    or a shortcut) is then needed nowhere else, and GPUs fuse it with the product before it.
    """
    return _rectified(x)


def _relu_forward(x):
    out = _rectified(x)
    return out, out


def _rectified(x):
    out = jnp.maximum(x, 0)
    if target_backend() == "cpu" and out.dtype == jnp.bfloat16:
        # On CPUs, XLA of jax 0.12 fuses a bfloat16 relu, convolution, relu and a reduction (such as
        # an average pool) into one program of YNNPACK, which returns NaN. The barrier parts it.
        out = jax.lax.optimization_barrier(out)
    return out


def _relu_backward(out, gradient):
    return (jnp.where(out != 0, gradient, jnp.zeros((), gradient.dtype)),)


relu.defvjp(_relu_forward, _relu_backward)
