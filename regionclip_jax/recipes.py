"""Recipes: strict settings from a recipe file and the command line.

A recipe file has ``get_config(variant) -> ConfigDict``, and states only changed values:

    config = defaults(PretrainSettings)
    config.data.path = "data/coco"

Recipes, variants and command lines change single keys of a ``ConfigDict``; ``resolve`` converts it
to settings. Other modules use only the settings.
"""

import ast
import dataclasses
import difflib
import runpy
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from regionclip_jax.jobs.registry import find_job
from regionclip_jax.settings import ConfigError, Section, meanings

Settings = typing.TypeVar("Settings", bound=Section)

_FLAG = "--config."

# Last parts of the keys of earlier versions -> current keys.
_RENAMED = {
    "data.fault_fraction": "data.max_skipped_fraction",
    "data.fault_minimum": "data.min_skipped_records",
    "evaluation.fault_fraction": "evaluation.max_skipped_fraction",
    "model.kept_activations": "model.remat",
    "student.kept_activations": "student.remat",
    "localizer.kept_activations": "localizer.remat",
    "regions.num_proposals": "regions.proposals.num_proposals",
    "regions.pre_nms_topk": "regions.proposals.pre_nms_topk",
    "regions.proposal_nms_threshold": "regions.proposals.nms_threshold",
    "regions.roi_align": "regions.roi_align_impl",
    "detector.num_proposals": "detector.proposals.num_proposals",
    "detector.pre_nms_topk": "detector.proposals.pre_nms_topk",
    "detector.proposal_nms_threshold": "detector.proposals.nms_threshold",
    "detector.roi_align": "detector.roi_align_impl",
    "evaluation.num_proposals": "evaluation.proposals.num_proposals",
    "evaluation.pre_nms_topk": "evaluation.proposals.pre_nms_topk",
    "evaluation.proposal_nms_threshold": "evaluation.proposals.nms_threshold",
    "evaluation.nms": "evaluation.detection.nms.method",
    "evaluation.nms_threshold": "evaluation.detection.nms.threshold",
    "evaluation.soft_nms_sigma": "evaluation.detection.nms.sigma",
    "evaluation.soft_nms_prune": "evaluation.detection.nms.prune",
    "evaluation.roi_align": "evaluation.detection.roi_align_impl",
    "scenes.closeup_things": "scenes.closeup_objects",
    "scenes.scene_things": "scenes.scene_objects",
    **{
        f"evaluation.{key}": f"evaluation.detection.{key}"
        for key in (
            "temperature", "embed_from", "objectness", "score_threshold", "max_detections",
            "regions_per_chunk",
        )
    },
}  # fmt: skip


def defaults(section: type) -> ml_collections.ConfigDict:
    """Return the defaults of settings, for a recipe to change.

    Optional keys accept None and values of their own type.
    """
    return _as_config(section())


def _as_config(settings: Any) -> ml_collections.ConfigDict:
    hints = typing.get_type_hints(type(settings), include_extras=True)
    config = ml_collections.ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = _as_config(value)
        elif value is None:
            value = config_dict.placeholder(_plain_type(hints[field.name]))
        elif isinstance(value, dict):
            value = ml_collections.ConfigDict(value)
        config[field.name] = value
    return config


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether None was allowed."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (rest,) = (a for a in typing.get_args(kind) if a is not type(None))
        return rest, True
    return kind, False


def _plain_type(kind: Any) -> type:
    """Return the type by which a ConfigDict checks a value."""
    kind = _without_range(_without_none(kind)[0])
    origin = typing.get_origin(kind)
    return str if origin is typing.Literal else origin or kind


def _without_range(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def load(specification: str) -> ml_collections.ConfigDict:
    """Read a recipe.

    Args:
        specification: a file, or ``FILE:VARIANT``. If ``configs/NAME.py`` is not in the working
            directory, the package's recipe is used.

    Raises:
        ConfigError: no such file, no recipe in it, no such variant, or the file fails.
    """
    file, colon, variant = specification.rpartition(":")
    if not colon:
        file, variant = specification, ""
    path = _find(file)
    if path is None:
        shipped = ", ".join(sorted(f"configs/{p.name}" for p in _shipped().glob("[!_]*.py")))
        raise ConfigError(f"--config: {file!r} cannot be read; give a recipe such as {shipped}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ConfigError("has no function get_config")
        config = get_config(variant) if variant else get_config()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({path}, line {last.lineno})" if str(path) == last.filename else ""
        raise ConfigError(f"--config: {file}: {error}{where}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"--config: {file}: get_config gave {config!r}, expected a ConfigDict")
    return config


def read(specification: str, assignments: Iterable[str] = ()) -> Any:
    """Read a recipe, apply assignments of the command line, and return the settings of its job.

    Args:
        specification: as in ``load``.
        assignments: arguments ``--config.KEY=VALUE``.

    Raises:
        ConfigError: as in ``load``, ``assign`` and ``resolve``, or the recipe names no job.
    """
    config = load(specification)
    section = find_job(config.get("job")).settings
    for argument in assignments:
        key, _, text = argument.removeprefix(_FLAG).partition("=")
        assign(section, config, key, text)
    return resolve(section, config)


def split_assignments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command line into other arguments and assignments of a recipe's keys.

    ``--config.KEY VALUE`` becomes ``--config.KEY=VALUE``.

    Raises:
        ConfigError: a key without a value.
    """
    rest, found, waiting = [], [], None
    for argument in arguments:
        if waiting is not None:
            found.append(f"{waiting}={argument}")
            waiting = None
        elif argument.startswith((_FLAG, _FLAG[1:])):
            argument = f"--{argument.lstrip('-')}"
            if "=" in argument:
                found.append(argument)
            else:
                waiting = argument
        else:
            rest.append(argument)
    if waiting is not None:
        raise ConfigError(f"{waiting}: expected a value, as in {waiting}=VALUE")
    return rest, found


def _find(file: str) -> Path | None:
    """Return the recipe's file; recipes of ``configs/`` are found from any folder."""
    path = Path(file)
    if not path.is_file() and path.parent == Path("configs"):
        path = _shipped() / path.name
    return path if path.is_file() else None


def _shipped() -> Path:
    """Return the folder of recipes: beside the package in a checkout, in it when installed."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def assign(section: type, config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Set a key of a recipe to a value from the command line.

    Args:
        section: settings class of the recipe.
        key: with dots, e.g. "run.num_steps".
        text: the value: plain text, ``None``, a number, ``true`` or ``false``, or a tuple in Python
            syntax, e.g. ``(800,)``.

    Raises:
        ConfigError: no such key, or a value of another type.
    """
    where = f"config.{key}"
    *parents, name = key.split(".")
    values: Any = config
    for parent in parents:
        kind = _field_type(section, parent, where)
        kind, _ = _without_none(kind)
        values = values[parent]
        if typing.get_origin(kind) is dict:
            # The recipe chooses these names, such as those of models.
            _set(values, name, text)
            return
        if not _is_section(kind):
            raise ConfigError(f"{where}: {parent!r} has no keys of its own")
        section = kind
    kind = _field_type(section, name, where)
    if _is_section(kind):
        keys = sorted(field.name for field in dataclasses.fields(kind))
        raise ConfigError(f"{where}: has keys of its own, set one of {keys}")
    _set(values, name, _from_text(kind, text, where))


def _set(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    # The ConfigDict's own type checks would refuse a float for a key with an integer value.
    with config.unlocked(), config.ignore_type():
        config[name] = value


def _is_section(kind: Any) -> typing.TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def _field_type(section: type, name: str, where: str) -> Any:
    hints = typing.get_type_hints(section, include_extras=True)
    if name not in hints:
        raise ConfigError(f"{where}: no such key{_hint(section, name, where)}")
    return hints[name]


def _hint(section: type, name: str, where: str) -> str:
    """Suggest a key for one that does not exist."""
    names = [field.name for field in dataclasses.fields(section)]
    for old, new in _RENAMED.items():
        # No suggestion from another section if this one no longer has the key.
        first = new.removeprefix(f"{old.rpartition('.')[0]}.").partition(".")[0]
        if f".{where}".endswith(f".{old}") and first in names:
            return f"; it is {new!r} now"
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {sorted(names)}"


def _from_text(kind: Any, text: str, where: str) -> Any:
    kind, optional = _without_none(kind)
    if optional and text == "None":
        return None
    if _plain_type(kind) is str:
        return text
    if kind is bool:
        found = {"true": True, "false": False}.get(text.lower())
        if found is None:
            raise ConfigError(f"{where}: expected true or false, found {text!r}")
        return found
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ConfigError(f"{where}: expected {_name(kind)}, found {text!r}") from None


def resolve(section: type[Settings], config: Any, where: str = "config") -> Settings:
    """Convert a recipe to settings.

    Raises:
        ConfigError: a key that does not exist (with a suggestion), a value of another type or
            outside a key's choices, or keys that contradict each other.
    """
    if not isinstance(config, ml_collections.ConfigDict | Mapping):
        raise ConfigError(f"{where}: expected a section with keys, found {config!r}")
    hints = typing.get_type_hints(section, include_extras=True)
    names = {field.name for field in dataclasses.fields(section)}
    values = {}
    for key, value in config.items():
        if key not in names:
            path = f"{where}.{key}"
            raise ConfigError(f"{path}: no such key{_hint(section, key, path)}")
        values[key] = _convert(hints[key], value, f"{where}.{key}")
    missing = [
        field.name
        for field in dataclasses.fields(section)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {missing}")
    try:
        return section(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    kind, optional = _without_none(kind)
    if optional and value is None:
        return None
    if _is_section(kind):
        return resolve(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value  # The section checks its own choices.
    if origin is tuple and isinstance(value, list | tuple):
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        if not variable and len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} values, found {value!r}")
        kinds = [arguments[0]] * len(value) if variable else arguments
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, ml_collections.ConfigDict | Mapping):
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    plain = _without_range(kind)  # The section checks its own ranges.
    if plain is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if plain in (bool, int, float, str) and type(value) is plain:
        return value
    raise ConfigError(f"{where}: expected {_name(kind)}, found {value!r}")


def _name(kind: Any) -> str:
    """Name a type in words, for errors."""
    if typing.get_origin(kind) is typing.Annotated:
        return str(typing.get_args(kind)[1])
    return getattr(kind, "__name__", None) or str(kind)


def describe(settings: Any) -> str:
    """Return all keys of settings as lines: key, value, default if it differs, meaning."""
    lines = []
    for key, value, default, meaning in _described(settings, type(settings)(), "config"):
        changed = "" if value == default else f"  (default {default!r})"
        lines += [f"{key} = {value!r}{changed}"]
        lines += [f"    {meaning}"] if meaning else []
    return "\n".join(lines)


def _described(settings: Any, default: Any, where: str) -> Iterator[tuple[str, Any, Any, str]]:
    said = meanings(type(settings))
    for field in dataclasses.fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from _described(value, usual, f"{where}.{field.name}")
        else:
            yield f"{where}.{field.name}", value, usual, said.get(field.name, "")
