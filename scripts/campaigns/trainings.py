"""Three trainings of seconds: pretraining, a localizer, a detector; on synthetic scenes."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from campaigns import children
from regionclip_jax import main as main_command
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.scenes.dataset import SceneImages, draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.recipes import defaults
from regionclip_jax.settings import (
    PretrainSettings,
    TrainDetectorSettings,
    TrainLocalizerSettings,
)
from regionclip_jax.structures import Preprocessing

NAMES = ("pretrain", "localizer", "detector")
NUM_STEPS = 8
CHECKPOINT_EVERY = 2
# Steps of the run whose checkpoints are damaged before it goes on to NUM_STEPS.
HALF = 4
# Far beyond the seconds of a whole run on a loaded machine.
MOST_SECONDS = 300.0

_PRESET = "campaign"
_SIDE, _BATCH = 64, 4


def register_presets() -> None:
    """Add the smallest networks to the presets of this process and its children."""
    text = TextConfig(vocab_size=49408, context_length=77, width=16, heads=2, layers=1)
    trunk = ResNetConfig((1, 1, 1, 1), 8, 4)
    PRESETS[_PRESET] = CLIPConfig(trunk, text, Preprocessing(_SIDE), embed_dim=20)
    LOCALIZER_PRESETS[_PRESET] = LocalizerConfig(
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
        scenes = SceneImages(
            0, 0, _SIDE, (1, 3), (0.3, 0.5), overlap=0.2, typicality=0.8, clutter=1
        )
        for name, with_boxes in (("pairs", False), ("boxes", True)):
            records = (draw_record(scenes, index, with_boxes) for index in range(24))
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
                "from campaigns.trainings import Trainings\n\n\n"
                f"def get_config():\n    return Trainings.config({name!r}, {str(folder)!r})\n"
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

    @staticmethod
    def config(name: str, folder: str) -> ml_collections.ConfigDict:
        """Return the recipe of a training."""
        return {"pretrain": _pretrain, "localizer": _localizer, "detector": _detector}[name](
            Path(folder)
        )

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

    shapes = flatten(abstract_variables(PRESETS[_PRESET]))
    variables = unflatten({path: draw(path, leaf.shape) for path, leaf in shapes.items()})
    save_model(directory, variables, ModelCard(PRESETS[_PRESET], {"run": "campaign"}))


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


def _update_common(config, folder: Path) -> None:
    config.matmul_precision = "highest"
    config.optimizer.update(
        learning_rate=1e-3, boundaries=(100,), warmup_factor=1.0, warmup_steps=0, weight_decay=0.0
    )
    config.run.update(
        num_steps=NUM_STEPS,
        batch_size=_BATCH,
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
        checkpoints_to_keep=3,
    )
    config.data.update(
        source="array_record",
        path=str(folder / ("pairs" if "context_length" in config.data else "boxes")),
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((_SIDE, _SIDE),),
        group_by_canvas=False,
        num_threads=1,
    )


def _pretrain(folder: Path) -> ml_collections.ConfigDict:
    config = defaults(PretrainSettings)
    _update_common(config, folder)
    config.data.context_length = 24
    for model in (config.student, config.teacher):
        model.update(preset=_PRESET, init_from=str(folder / "start"), dtype="float32")
    config.concepts.update(names_file=str(folder / "concepts.txt"), templates="plain")
    config.regions.update(
        num_regions=3,
        temperature=0.1,
        teacher_temperature=0.1,
        images_per_group=4,
        regions_per_softmax=2,
        regions_per_chunk=None,
    )
    config.regions.proposals.update(num_proposals=6, pre_nms_topk=50, nms_threshold=0.7)
    return config


def _evaluated(config, folder: Path) -> None:
    config.evaluation.update(
        source="array_record",
        path=str(folder / "boxes"),
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((_SIDE, _SIDE),),
        batch_size=8,
        max_boxes=3,
        num_threads=1,
    )
    config.evaluation.proposals.update(num_proposals=20, pre_nms_topk=100)
    config.data.update(classes="scenes_base", max_boxes=3, repeat_threshold=0.3)


def _localizer(folder: Path) -> ml_collections.ConfigDict:
    config = defaults(TrainLocalizerSettings)
    _update_common(config, folder)
    _evaluated(config, folder)
    config.localizer.update(preset=_PRESET, init_from=str(folder / "start"), dtype="float32")
    config.optimizer.frozen_patterns = ("norm",)
    config.anchors.anchors_per_image = 16
    return config


def _detector(folder: Path) -> ml_collections.ConfigDict:
    config = defaults(TrainDetectorSettings)
    _update_common(config, folder)
    _evaluated(config, folder)
    config.model.update(preset=_PRESET, init_from=str(folder / "start"), dtype="float32")
    config.detector.update(
        localizer=str(folder / "whole-localizer" / "model"),
        samples_per_image=8,
        temperature=0.1,
        templates="plain",
        regions_per_chunk=4,
    )
    config.detector.proposals.update(num_proposals=20, pre_nms_topk=50, nms_threshold=0.7)
    config.optimizer.frozen_patterns = ("norm", "^text/", "^logit_scale")
    config.evaluation.update(regions="localizer", templates="plain")
    return config
