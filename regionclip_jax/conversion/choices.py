"""Numbers that no file of a checkpoint states, chosen by the user.

Weights of QuickGELU and of GELU have the same shapes, so nothing here is guessed. The user names a
preset, whose sizes must be those of the tensors, or the activation alone. The other numbers are
then those of the presets with these sizes, and they must agree.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.transformer_blocks import ACTIVATIONS, Activation
from regionclip_jax.settings.fields import choose

# Fields of towers that the tensors do not determine.
_OPEN = {"heads", "activation", "eps", "position_resize", "tokenizer"}


class Choice(NamedTuple):
    """Statement of the user about a checkpoint; None: not stated.

    Attributes:
        preset: name in ``models.presets``.
        activation: of both towers.
    """

    preset: str | None = None
    activation: Activation | None = None

    @property
    def flag(self) -> str | None:
        """The option of ``regionclip convert`` with this choice."""
        if self.preset is not None:
            return f"--preset {self.preset}"
        return None if self.activation is None else f"--activation {self.activation}"

    def completed(self, config: CLIPConfig, path: Path, *, image: bool, text: bool) -> CLIPConfig:
        """Return ``config`` with the numbers of the chosen preset or activation.

        Args:
            config: architecture inferred from the tensors.
            path: the checkpoint.
            image, text: whether the tower is of this checkpoint; the other one stays as it is.

        Raises:
            CheckpointMismatch: nothing was chosen, the preset has other sizes than the tensors, or
                presets of these sizes disagree on more than the activation.
        """
        parts = {"image": image, "text": text}
        if self.preset is not None:
            preset = choose(PRESETS, self.preset, "--preset")
            if differences := _differences(preset, config, **parts):
                raise CheckpointMismatch(
                    f"{path}: expected the sizes of --preset {self.preset}, found others "
                    f"({', '.join(differences)}); {_remedy(config, **parts)}"
                )
            return _with_numbers(config, preset, **parts)
        possible = {} if self.activation is None else self._by_activation(config, **parts)
        if len(possible) != 1:
            what = "heads, activation, eps and pixels are not in the tensors"
            if possible:
                what = (
                    f"--activation {self.activation} leaves {' or '.join(possible.values())} open"
                )
            raise CheckpointMismatch(
                f"{path}: expected open_clip_config.json or Hugging Face's config.json beside it, "
                f"found neither; {what}; {_remedy(config, **parts)}"
            )
        return next(iter(possible))

    def _by_activation(self, config: CLIPConfig, **parts: bool) -> dict[CLIPConfig, str]:
        """Return the possible configs with the chosen activation, and a preset of each."""
        names = presets_of_sizes(config, **parts)
        having = [name for name in names if _activation(PRESETS[name]) == self.activation]
        possible: dict[CLIPConfig, str] = {}
        for name in having or names:
            completed = _with_numbers(config, PRESETS[name], **parts)
            completed = dataclasses.replace(
                completed,
                image=_with_activation(completed.image, self.activation, parts["image"]),
                text=_with_activation(completed.text, self.activation, parts["text"]),
                # Presets of one model differ in it: it matters where no recipe names a filter.
                preprocessing=dataclasses.replace(
                    completed.preprocessing, resize=config.preprocessing.resize
                ),
            )
            possible.setdefault(completed, name)
        return possible


NO_CHOICE = Choice()


def presets_of_sizes(config: CLIPConfig, *, image: bool = True, text: bool = True) -> list[str]:
    """Return the names of the presets with the sizes of ``config``.

    Args:
        image, text: whether to compare this tower.
    """
    return [
        name
        for name, preset in PRESETS.items()
        if not _differences(preset, config, image=image, text=text)
    ]


def _differences(preset: CLIPConfig, config: CLIPConfig, *, image: bool, text: bool) -> list[str]:
    """Describe the sizes that differ."""
    expected, found = (_sizes(each, image=image, text=text) for each in (preset, config))
    return [
        f"{key}: {expected.get(key, 'none')} in the preset, {found.get(key, 'none')} in the file"
        for key in expected | found
        if expected.get(key) != found.get(key)
    ]


def _sizes(config: CLIPConfig, *, image: bool, text: bool) -> dict[str, Any]:
    sizes: dict[str, Any] = {"embedding width": config.embed_dim}
    if image:
        cells = config.preprocessing.resolution // config.image.stride
        sizes["image: cells of a side"] = cells
    for name, own in (("image", image), ("text", text)):
        if own:
            tower = getattr(config, name)
            sizes[name] = type(tower).__name__
            for field in dataclasses.fields(tower):
                if field.name not in _OPEN:
                    sizes[f"{name}.{field.name}"] = getattr(tower, field.name)
    return sizes


def _activation(config: CLIPConfig) -> str | None:
    return getattr(config.text, "activation", None)


def _with_numbers(config: CLIPConfig, preset: CLIPConfig, *, image: bool, text: bool) -> CLIPConfig:
    """Return ``config`` with the towers of a preset that are of this checkpoint."""
    if image:
        config = dataclasses.replace(config, image=preset.image, preprocessing=preset.preprocessing)
    return dataclasses.replace(config, text=preset.text) if text else config


def _with_activation(tower, activation: Activation | None, own: bool):
    if not own or not hasattr(tower, "activation"):
        return tower
    return dataclasses.replace(tower, activation=activation)


def _remedy(config: CLIPConfig, **parts: bool) -> str:
    names = presets_of_sizes(config, **parts)
    if not names:
        return (
            "no preset has the sizes of this file: put the model's configuration beside it under "
            "the library's name of the file"
        )
    listed = ", ".join(f"{name} ({_activation(PRESETS[name])})" for name in names)
    return (
        f"put the model's configuration beside it, or choose --preset of {listed}, or --activation "
        f"of {', '.join(ACTIVATIONS)} if the rest is as in these"
    )
