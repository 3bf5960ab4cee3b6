"""Damage files of checkpoints, model directories and prepared shards; nothing may load as another.

A damaged file must be refused, lead to a loud fall-back, or change no number.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from campaigns import children
from campaigns.children import HANG, Trial
from campaigns.kills import compare
from campaigns.trainings import MOST_SECONDS, Reference, Trainings
from regionclip_jax.artifacts.detector_heads import load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.assembly.sources import SourceChoice, build_boxes_source
from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.settings import UserError

# A refusal may name a few tensors on lines of their own.
MOST_LINES = 12
PARTS = ("checkpoints", "models", "shards")


def damage_file(path: Path, rng: np.random.Generator) -> str:
    """Flip a bit of a file, cut it, empty it or delete it; return what was done."""
    size = path.stat().st_size
    kind = rng.choice(["flip", "flip", "flip", "cut", "delete"] if size else ["delete"])
    if kind == "delete":
        path.unlink()
        return f"{path.name} deleted"
    position = int(rng.integers(size))
    if kind == "cut":
        with path.open("r+b") as file:
            file.truncate(position)
        return f"{path.name} cut at {position} of {size}"
    bit = int(rng.integers(8))
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0] ^ (1 << bit)
        file.seek(position)
        file.write(bytes([value]))
    return f"{path.name} bit {bit} of byte {position} of {size}"


def damage(trainings: Trainings, references: dict[str, Reference], seed: int, trial: Trial) -> dict:
    """Damage one file of a copy, and use the copy."""
    rng = np.random.default_rng([seed, 3, trial.number])
    use = {"checkpoints": _resume, "models": _load, "shards": _read}[trial.part]
    return use(trainings, references, rng, trainings.folder / f"damage-{trial.number}")


def _copy(original: Path, copy: Path, rng: np.random.Generator, below: str = "") -> str:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy)
    files = sorted(path for path in (copy / below).rglob("*") if path.is_file())
    # Large files have most of the bits, small ones decide what they mean: half of the trials each.
    sizes = np.array([path.stat().st_size for path in files], np.float64)
    weights = sizes / sizes.sum() if rng.integers(2) else np.full(len(files), 1 / len(files))
    chosen = files[int(rng.choice(len(files), p=weights))]
    return f"{chosen.parent.relative_to(copy)}: {damage_file(chosen, rng)}"


def _resume(trainings: Trainings, references, rng: np.random.Generator, workdir: Path) -> dict:
    """Continue a training from a damaged checkpoint."""
    name = sorted(references)[int(rng.integers(len(references)))]
    what = _copy(trainings.folder / f"half-{name}", workdir, rng, "checkpoints")
    log = workdir / "damage.txt"
    child = children.fork(trainings.command(name, workdir), log)
    status = children.wait(child, MOST_SECONDS)
    text = log.read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("regionclip_jax: ")]
    result = {"damage": f"{name}/{what}"}
    if status is None:
        return result | {"outcome": HANG, "text": f"{workdir}: no end"}
    if status < 0:
        return result | {"outcome": children.DIED, "text": f"{workdir}: status {status}"}
    if "Traceback" in text:
        return result | {"outcome": "traceback", "text": f"{workdir}: {text.splitlines()[-1]}"}
    if status == 0:
        return result | compare(trainings, references[name], workdir)
    if len(lines) != 1:
        return result | {"outcome": "no refusal", "text": f"{workdir}: {text[-300:]}"}
    shutil.rmtree(workdir)
    return result | {"outcome": "refused"}


def _load(trainings: Trainings, references, rng: np.random.Generator, copy: Path) -> dict:
    """Load a damaged model directory, as every command does."""
    name = sorted(references)[int(rng.integers(len(references)))]
    original = trainings.folder / f"whole-{name}" / "model"
    what = _copy(original, copy, rng)
    return {"damage": f"{name}/model/{what}"} | _compared(_arrays, original, copy)


def _read(trainings: Trainings, references, rng: np.random.Generator, copy: Path) -> dict:
    """Read a damaged prepared directory."""
    what = _copy(trainings.folder / "boxes", copy, rng)
    return {"damage": what} | _compared(_records, trainings.folder / "boxes", copy)


def _compared(read: Callable[[Path], dict], original: Path, copy: Path) -> dict:
    """Return whether a copy is refused, or equals the original; skipped entries are None."""
    try:
        found = read(copy)
    except (UserError, FileNotFoundError) as error:
        short = len(str(error).splitlines()) <= MOST_LINES
        return {"outcome": "refused"} if short else _bad("too many lines", error)
    except Exception as error:
        return _bad("traceback", error)
    finally:
        shutil.rmtree(copy)
    wanted = read(original)
    if found.keys() != wanted.keys():
        return _bad("other numbers", f"found {len(found)} entries, expected {len(wanted)}")
    other = [key for key, value in wanted.items() if found[key] not in (None, value)]
    if other:
        return _bad("other numbers", f"{len(other)} of {len(wanted)} differ, e.g. {other[0]}")
    return {"outcome": "skipped" if None in found.values() else "bit-equal"}


def _bad(outcome: str, error: object) -> dict:
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return {"outcome": outcome, "text": f"{kind}{error}"[:300]}


def _arrays(directory: Path) -> dict[str, str]:
    """Return digests of all arrays of a model directory: CLIP, heads, localizer, vocabulary."""
    trees = {}
    if (directory / "card.json").exists() or not (directory / "localizer").exists():
        trees["clip"] = load_model(directory)[0]
    if (directory / "heads").exists():
        trees["heads"] = load_heads(directory)[0]
    if (directory / "localizer").exists():
        trees["localizer"] = load_localizer(directory)[0]
    digests = {
        f"{part}/{path}": _digest(leaf)
        for part, tree in trees.items()
        for path, leaf in flatten(tree).items()
    }
    if (directory / "vocabulary.npz").exists():
        vocabulary = Vocabulary.load(directory / "vocabulary.npz")
        digests["vocabulary"] = _digest(vocabulary.embeddings) + repr(vocabulary.names)
    return digests


def _records(directory: Path) -> dict[str, str | None]:
    """Return digests of the records of a prepared directory; None for skipped ones."""
    settings = SourceChoice("array_record", str(directory), "", 0.5)
    source = build_boxes_source(settings, "data")
    digests: dict[str, str | None] = {"names": repr(source.category_names)}
    for index in range(len(source)):
        try:
            record = source[index]
            pixels = decode_image_of(record, repr(source))
        except RecordError:
            digests[str(index)] = None
            continue
        arrays = (pixels, record.boxes, record.classes, record.crowd)
        digests[str(index)] = " ".join(map(_digest, arrays)) + repr((record.key, record.size))
    return digests


def _digest(array: np.ndarray) -> str:
    array = np.asarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
