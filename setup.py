"""Packages of the wheel; all else stands in setup.cfg, which cannot map a folder into a package."""

from setuptools import find_packages, setup

setup(
    # The recipes lie beside the package in a checkout and within it when installed.
    packages=[*find_packages(include=["regionclip_jax*"]), "regionclip_jax.configs"],
    package_dir={"regionclip_jax.configs": "configs"},
)
