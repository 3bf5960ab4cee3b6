import pytest


@pytest.fixture(autouse=True, scope="session")
def _presets(nano_presets):
    """Register the presets ``nano_vit`` and ``nano_resnet`` for all tests of this folder."""
