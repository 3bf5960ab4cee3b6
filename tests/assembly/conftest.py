import pytest


@pytest.fixture(autouse=True, scope="session")
def _presets(nano_presets):
    """Let every recipe of this folder name the presets ``nano_vit`` and ``nano_resnet``."""
