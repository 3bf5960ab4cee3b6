import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.assembly.models import initial_variables
from regionclip_jax.data.sources.image_folder import ImageFolderSource
from regionclip_jax.jobs import distill
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import (
    ConfigError,
    DistillObjective,
    DistillSettings,
    ImageDataSettings,
    ProposalSettings,
)
from regionclip_jax.sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def config(data, optimizer, run_section, model_section, model_directory) -> DistillSettings:
    images = ImageDataSettings(
        source="array_record",
        path=data.path,
        short_sides=None,
        max_long_side=None,
        canvas_sizes=data.canvas_sizes,
        group_by_canvas=False,
        num_threads=1,
    )
    patterns = ("^text/", "^logit_", "^visual/(?!blocks/)")
    return DistillSettings(
        model=dataclasses.replace(
            model_section("nano_vit", model_directory("nano_vit")), normalize_map=True
        ),
        student_share=0.25,
        data=images,
        regions=DistillObjective(boxes_per_image=2, max_split=2),
        optimizer=dataclasses.replace(optimizer, frozen_patterns=patterns),
        run=run_section,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Working directory and model of a run of two steps with two checkpoints."""
    workdir = tmp_path_factory.mktemp("distill")
    return workdir, distill.run(config, workdir)


def test_a_share_of_the_student_is_saved_and_another_share_without_a_step(
    trained, config, changed, nano_weights, tmp_path, monkeypatch
):
    quarter, card = load_model(trained[1])
    assert card.architecture == dataclasses.replace(PRESETS["nano_vit"], normalize_map=True)
    assert card.preset == "nano_vit"
    assert card.source == {"run": "distill", "step": 2}
    workdir = tmp_path / "again"
    shutil.copytree(trained[0], workdir)
    monkeypatch.setattr(distill, "make_distill_step", None)
    student, _ = load_model(distill.run(changed(config, {"student_share": 1.0}), workdir))
    start, student, quarter = map(flatten, (nano_weights("nano_vit", 0), student, quarter))
    for path, before in start.items():
        trained_ = path.startswith("params/visual/blocks/")
        if trained_ and "attention/q_" not in path and "attention/k_" not in path:
            assert not np.array_equal(student[path], before), path
        elif not trained_:
            np.testing.assert_array_equal(student[path], before)
            np.testing.assert_array_equal(quarter[path], before)
        expected = 0.25 * np.float64(student[path]) + 0.75 * np.float64(before)
        np.testing.assert_allclose(quarter[path], expected, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_equals_one_without_a_stop(trained, config, tmp_path):
    whole = flatten(load_model(trained[1])[0])
    workdir = tmp_path / "resumed"
    shutil.copytree(trained[0], workdir)
    shutil.rmtree(workdir / "model")
    shutil.rmtree(workdir / "checkpoints" / "2")
    parts = flatten(load_model(distill.run(config, workdir))[0])
    for path in whole:
        np.testing.assert_array_equal(whole[path], parts[path], err_msg=path)


@pytest.mark.slow
def test_proposals_of_a_localizer_are_boxes_and_the_model_has_the_localizer(
    config, changed, nano_localizer, tmp_path, read_events
):
    card, variables = nano_localizer
    save_localizer(tmp_path / "localizer", variables, card)
    settings = {
        "regions.boxes": "proposals",
        "regions.localizer": str(tmp_path / "localizer"),
        "regions.proposals": ProposalSettings(num_proposals=6, pre_nms_topk=50),
    }
    model = distill.run(changed(config, settings), tmp_path / "run")
    assert load_localizer(model)[1].architecture == card.architecture
    assert load_model(model)[1].scores.proposals.pre_nms_topk == 1000
    events = read_events(tmp_path / "run")
    assert all(0 < value < 2 for _, value in events["loss"])
    assert all(1 <= value <= 2 for _, value in events["boxes_per_image"])


def test_tensorboard_has_the_losses(trained, read_events):
    events = read_events(trained[0])
    assert [step for step, _ in events["loss"]] == [1, 2]
    assert all(0 < value < 2 for _, value in events["loss"])
    assert all(1 <= value <= 2 for _, value in events["boxes_per_image"])


def test_a_training_that_embeds_regions_otherwise_says_so(trained, model_section, caplog):
    section = model_section("nano_vit", trained[1])
    for same in (False, True):
        caplog.clear()
        assert initial_variables(dataclasses.replace(section, normalize_map=same), seed=0)
        assert ("normalize_map is True there and False in this recipe" in caplog.text) != same


def test_a_run_from_another_start_is_not_resumed(trained, config, changed, model_directory):
    other = changed(config, {"model.init_from": model_directory("nano_vit", 1)})
    with pytest.raises(CheckpointMismatch, match=r"contents\.start: there"):
        distill.run(changed(other, {"run.num_steps": 3}), trained[0])


def test_a_resnet_and_proposals_without_a_localizer_are_refused(config, changed):
    resnet = changed(config, {"model.preset": "nano_resnet"})
    message = r"model\.preset: .*'resnet' has no embedding of each cell .*'vit', 'eva'"
    with pytest.raises(ConfigError, match=message):
        distill.build(resnet)
    with pytest.raises(ConfigError, match=r"regions\.localizer: '' with boxes 'proposals'"):
        distill.build(changed(config, {"regions.boxes": "proposals"}))


def test_eva_is_distilled_in_bfloat16_with_losses_and_parameters_in_float32(
    config, changed, monkeypatch
):
    """Trace the step; the tests of steps compute that of a ViT."""
    image = EVAConfig(patch_size=16, layers=1, width=16, heads=2, mlp_width=12)
    eva = dataclasses.replace(PRESETS["nano_vit"], image=image)
    monkeypatch.setitem(PRESETS, "nano_eva", eva)
    model = {"model.preset": "nano_eva", "model.init_from": "", "model.dtype": "bfloat16"}
    training = distill.build(changed(config, model))
    state, frozen = training.abstract_state(), training.abstract_frozen()
    assert frozen.teacher["params"]["visual"]["patch_embedding"]["kernel"].dtype == jnp.bfloat16
    step = training.make_step(make_mesh(devices=jax.devices()[:1]))
    after, metrics = jax.eval_shape(step, state, frozen, training.abstract_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32 and metrics["loss"].shape == ()


def test_images_of_a_folder_are_batches(config, changed, tmp_path, scene_record):
    """Every image of an epoch comes once; a broken file is a masked row."""
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(scene_record(i, False).image)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    folder = {"data.source": "image_folder", "data.path": str(tmp_path)}
    folder |= {"data.max_skipped_fraction": 0.2, "data.flip_probability": 0.0}
    materials = distill.build(changed(config, folder)).open()
    batch = next(materials.batches(0))
    assert sorted(batch.mask.tolist()) == [False] + [True] * 7
    assert len({image.tobytes() for image in batch.images}) == 8
    assert batch.images.shape == (8, 64, 64, 3)
    folder["data.flip_probability"] = 1.0
    mirrored = next(distill.build(changed(config, folder)).open().batches(0))
    np.testing.assert_array_equal(mirrored.images, batch.images[:, :, ::-1])
    assert materials.contents["records"] == len(ImageFolderSource(tmp_path)) == 8
