"""Three trainings of seconds: pretraining, a localizer, a detector; on synthetic scenes."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from campaigns import children
from campaigns.recipes import NUM_STEPS, PRESET, RECIPES, SCENES, SIDE
from regionclip_jax import main as main_command
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.scenes.dataset import draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

NAMES = tuple(RECIPES)
# Steps of the run whose checkpoints are damaged before it goes on to NUM_STEPS.
HALF = 4
# Far beyond the seconds of a whole run on a loaded machine.
MOST_SECONDS = 300.0


def register_presets() -> None:
    """Add the smallest networks to the presets of this process and its children."""
    text = TextConfig(vocab_size=49408, context_length=77, width=16, heads=2, layers=1)
    trunk = ResNetConfig((1, 1, 1, 1), 8, 4)
    PRESETS[PRESET] = CLIPConfig(trunk, text, Preprocessing(SIDE), embed_dim=20)
    LOCALIZER_PRESETS[PRESET] = LocalizerConfig(
        trunk="clip", blocks=(1, 1, 1, 1), stem_width=8, pyramid_channels=8
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """An uninterrupted run: digests of what it wrote, and seconds from its start to its parts."""

    name: str
    workdir: Path
    digests: dict[str, str]
    first_step: float
    last_step: float
    end: float


class Trainings:
    """Recipes of the trainings in a folder, and their commands."""

    def __init__(self, folder: Path):
        self.folder = folder
        # A model directory with random weights, from which all trainings start.
        self.start = folder / "start"
        register_presets()
        folder.mkdir(parents=True, exist_ok=True)
        for name, with_boxes in (("pairs", False), ("boxes", True)):
            records = (draw_record(SCENES, index, with_boxes) for index in range(24))
            names = {"category_names": list(SHAPES)} if with_boxes else {}
            write_array_record(records, folder / name, 64, names)
        (folder / "concepts.txt").write_text("\n".join(SHAPES))
        if not self.start.is_dir():
            child = children.fork(lambda: _write_start(self.start), folder / "start.log")
            if children.wait(child, MOST_SECONDS) != 0:
                raise RuntimeError((folder / "start.log").read_text())
        for name in NAMES:
            # Recipes are files; the presets of this process are known to its children alone.
            (folder / f"{name}.py").write_text(
                "from campaigns.recipes import RECIPES\n\n\n"
                f"def get_config():\n    return RECIPES[{name!r}]({str(folder)!r})\n"
            )

    def command(self, name: str, workdir: Path, *assignments: str) -> Callable[[], None]:
        """Return the main command of a training, to run in a child."""
        arguments = [
            "regionclip_jax.main",
            f"--config={self.folder / name}.py",
            f"--workdir={workdir}",
            "--preempted_status=75",
            *assignments,
        ]

        def run() -> None:
            # All runs share their compiled programs, also those that compile at once.
            jax.config.update("jax_compilation_cache_dir", str(self.folder / "compiled"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            flags.FLAGS.unparse_flags()
            app.run(main_command.main, argv=arguments, flags_parser=main_command.parse_flags)

        return run

    def digests(self, workdir: Path) -> dict[str, str]:
        """Return the digests of all arrays of a finished run, read in a child."""
        answers = workdir / "digests.txt"
        child = children.fork(lambda: _write_digests(workdir, answers), workdir / "digests.log")
        if children.wait(child, MOST_SECONDS) != 0:
            raise RuntimeError((workdir / "digests.log").read_text())
        lines = answers.read_text().splitlines()
        answers.unlink()
        return dict(line.rsplit(" ", 1) for line in lines)


def _write_start(directory: Path) -> None:
    """Write a model directory with weights from NumPy; JAX compiles initialisers slowly."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        name = path.rsplit("/", 1)[-1]
        constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0, "logit_scale": 2.6}
        if name in constants:
            return np.full(shape, constants[name], np.float32)
        fan_in = float(np.prod(shape[:-1])) if name == "kernel" else 1.0
        return (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)

    shapes = flatten(abstract_variables(PRESETS[PRESET]))
    variables = unflatten({path: draw(path, leaf.shape) for path, leaf in shapes.items()})
    save_model(directory, variables, ModelCard(PRESETS[PRESET], {"run": "campaign"}))


def _write_digests(workdir: Path, answers: Path) -> None:
    """Write the digest of every array of the model and of the last state, read by Orbax alone."""
    lines = []
    wholes = [*workdir.glob(f"checkpoints/{NUM_STEPS}/state"), *workdir.glob("model/**/_METADATA")]
    for whole in sorted(path.parent if path.name == "_METADATA" else path for path in wholes):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(whole).item_metadata.tree
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays = checkpointer.restore(whole, ocp.args.PyTreeRestore(restore_args=kinds))
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            value = np.asarray(leaf)
            digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode() + value.tobytes())
            name = f"{whole.relative_to(workdir)}{jax.tree_util.keystr(path)}"
            lines.append(f"{name} {digest.hexdigest()}")
    answers.write_text("\n".join(lines))
