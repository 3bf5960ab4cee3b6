"""Options that several commands share."""

import argparse

from regionclip_jax.assembly.devices import PLATFORMS, start_devices
from regionclip_jax.reporting.progress import log_own_progress


def add_require_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require_platform", choices=PLATFORMS, help="stop at once if JAX has other devices"
    )


def start(options: argparse.Namespace) -> None:
    """Start logging and the devices.

    Raises:
        DeviceError: as ``start_devices``.
    """
    log_own_progress()
    start_devices(options.require_platform)
