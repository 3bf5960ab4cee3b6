"""``README.md`` of a model on the Hugging Face Hub, made from the facts in its directory.

The facts are those of the cards, of the vocabulary, and of ``settings.json`` and ``results.json``
of the run that wrote the directory, if it still lies there. A fact that no file states is said to
be not recorded. Paths of the machine do not appear.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regionclip_jax.artifacts.detector_heads import has_heads, load_heads_card
from regionclip_jax.artifacts.localizer_checkpoint import FOLDER_NAME, load_localizer_card
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_card
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.artifacts.vocabulary import FILE_NAME as VOCABULARY_NAME
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, kind_of
from regionclip_jax.untrusted import read_model_json

PAGE_NAME = "README.md"
_UNKNOWN = "not recorded"
_SHOWN_NAMES = 20


def model_page(directory: Path, name: str, licence: str | None) -> str:
    """Return the page in Markdown, with the metadata of the Hub in YAML before it.

    Args:
        directory: a complete model directory.
        name: ``owner/name`` on the Hub.
        licence: of the weights, by the Hub's name of it; None: not stated.

    Raises:
        CheckpointMismatch: a card or a file of the run is not readable.
    """
    card = load_card(directory)
    metadata: dict[str, Any] = {
        "library_name": "regionclip_jax",
        "pipeline_tag": "zero-shot-object-detection",
        "tags": ["regionclip", "open-vocabulary-detection", "jax", "flax"],
    }
    if licence is not None:
        metadata["license"] = licence
    # JSON's texts and lists are YAML's too.
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    facts = [
        *_architecture(card),
        ("weights", _origin(card.source)),
        ("SHA-256 of the numbers", f"`{card.parameters_sha256 or _UNKNOWN}`"),
        ("written by", f"regionclip_jax {card.version}"),
        ("data seen", _data_seen(directory)),
        ("boxes seen", _boxes_seen(directory)),
        ("vocabulary", _vocabulary(directory)),
        ("licence of the weights", licence or "not stated"),
    ]
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts)
    return (
        f"---\n{yaml}\n---\n\n# {card.preset or 'A CLIP of no preset'} for regionclip_jax\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "## Metrics\n\n"
        f"{_metrics(directory)}\n\n"
        "## Use\n\n"
        "```python\nimport regionclip_jax\n\n"
        f'model = regionclip_jax.load("hf://{name}")\n'
        f"{_example(directory)}\n```\n"
    )


def _architecture(card: ModelCard) -> Iterator[tuple[str, str]]:
    config = card.architecture
    image, text = kind_of(config.image, IMAGE_TOWERS), kind_of(config.text, TEXT_TOWERS)
    shapes = flatten(abstract_variables(config)).values()
    numbers = sum(int(np.prod(leaf.shape)) for leaf in shapes if hasattr(leaf, "shape"))
    yield "architecture", f"{card.preset or 'no preset'}: image tower {image}, text tower {text}"
    yield "parameters", f"{numbers:,}"
    yield "embeddings", f"{config.embed_dim} numbers"
    side = config.preprocessing.resolution
    yield "pixels of the positional embedding", f"{side} x {side}"


def _origin(source: dict) -> str:
    if "file" in source:
        return f"converted from {source['file']}, SHA-256 `{source.get('sha256', _UNKNOWN)}`"
    if "run" in source:
        step = f", step {source['step']}" if "step" in source else ""
        return f"trained by the job {source['run']}{step}"
    return _UNKNOWN


def _run_file(directory: Path, name: str) -> Path | None:
    """Return a file of the run that wrote a directory ``model``, if it is there."""
    path = directory.resolve().parent / name
    return path if directory.resolve().name == "model" and path.is_file() else None


def _data_seen(directory: Path) -> str:
    path = _run_file(directory, "settings.json")
    if path is None:
        return _UNKNOWN
    try:
        settings = read_model_json(path)
    except ValueError as error:
        raise CheckpointMismatch(f"{error}; delete the file, or run again") from error
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, dict):
        return _UNKNOWN
    parts = data.get("mixture") or [data]
    seen = [
        f"{part['source']} {part.get('split') or ''}".strip()
        for part in parts
        if isinstance(part, dict) and part.get("source")
    ]
    return ", ".join(seen) or _UNKNOWN


def _boxes_seen(directory: Path) -> str:
    seen = []
    if (directory / FOLDER_NAME).exists():
        source = load_localizer_card(directory).source
        seen.append(f"localizer: {_classes(source)}; {_origin(source)}")
    if has_heads(directory):
        source = load_heads_card(directory).source
        seen.append(f"heads: {_classes(source)}; {_origin(source)}")
    return "; ".join(seen) or "none: no localizer and no heads"


def _classes(source: dict) -> str:
    classes = source.get("classes")
    return f"{len(classes)} classes" if isinstance(classes, list) else f"classes {_UNKNOWN}"


def _vocabulary(directory: Path) -> str:
    path = directory / VOCABULARY_NAME
    if not path.is_file():
        return "none: give names"
    names = Vocabulary.load(path).names
    more = ", ..." if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)} names: {', '.join(names[:_SHOWN_NAMES])}{more}"


def _metrics(directory: Path) -> str:
    path = _run_file(directory, "results.json")
    if path is None:
        return "Not recorded."
    try:
        results = read_results(path)
    except ValueError as error:
        raise CheckpointMismatch(str(error)) from error
    rows = [
        f"| {_cell(model)} | {_cell(metric)} | {'none' if value is None else f'{value:.2f}'} |"
        for model, metrics in results.items()
        if model not in ("format", "details")
        for metric, value in metrics.items()
    ]
    return "\n".join(["| model | metric | percent |", "|---|---|---|", *rows])


def _example(directory: Path) -> str:
    if (directory / FOLDER_NAME).exists() or has_heads(directory):
        return 'found = model.detect("photo.jpg", ["cat", "remote control"])'
    return 'embeddings = model.encode_regions("photo.jpg", [[0, 0, 100, 100]])'


def _cell(text: str) -> str:
    """Return a text that cannot end a cell of a table, nor be taken for markup of HTML."""
    text = " ".join(str(text).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
