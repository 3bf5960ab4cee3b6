import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from regionclip_jax import config as sections
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.config import ConfigError
from regionclip_jax.data.faults import TooManyFaults
from regionclip_jax.data.records import ImageTextRecord
from regionclip_jax.data.writers import write_array_record
from regionclip_jax.jobs import assembly
from regionclip_jax.losses.image_text import image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.steps.pretrain_step import PretrainSettings


def test_a_choice_that_does_not_exist_is_refused_with_its_key_and_those_that_do():
    with pytest.raises(ConfigError, match=r"data\.source: 'webdataset' is none of \['a', 'b'\]"):
        assembly.choose({"b": 1, "a": 2}, "webdataset", "data.source")
    with pytest.raises(ConfigError, match="dtype: 'fp16' is none of"):
        assembly.compute_dtype("fp16")
    with pytest.raises(ConfigError, match="preset: 'RN5' is none of .*'RN50'"):
        assembly.architecture(sections.ModelSection("RN5", "", "float32"))


def test_only_errors_of_values_become_mistakes_in_the_recipe():
    with pytest.raises(ConfigError, match="optimizer: too steep") as caught:
        with assembly.blame("optimizer"):
            raise ValueError("too steep")
    assert isinstance(caught.value.__cause__, ValueError)
    for error in (CheckpointMismatch("mine"), ConfigError("own"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught:
            with assembly.blame("optimizer"):
                raise error
        assert caught.value is error


def test_a_model_is_built_with_the_recipe_s_type_and_norm(model_section):
    section = dataclasses.replace(model_section("nano_resnet"), dtype="bfloat16")
    model = assembly.build_model(section, frozen_norm=False)
    assert model.config.embed_dim == 20 and model.dtype == jnp.bfloat16 and not model.frozen_norm


def test_a_fresh_model_is_drawn_from_the_seed(model_section, monkeypatch):
    architectures = []

    def fresh(config, key):
        architectures.append(config)
        return key

    # The initialisers themselves compile for many seconds.
    monkeypatch.setattr(assembly, "init_variables", fresh)
    for seed in (0, 7):
        found = assembly.initial_variables(model_section("nano_vit"), seed)
        assert found == jax.random.key(seed)
    assert set(architectures) == {PRESETS["nano_vit"]}


def test_a_model_starts_from_its_directory(model_section, model_directory, nano_weights):
    section = model_section("nano_vit", model_directory("nano_vit", 3))
    found = flatten(assembly.initial_variables(section, seed=0))
    expected = flatten(nano_weights("nano_vit", 3))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_a_directory_of_another_architecture_is_refused_naming_both(model_section, model_directory):
    directory = model_directory("nano_resnet")
    with pytest.raises(CheckpointMismatch) as caught:
        assembly.initial_variables(model_section("nano_vit", directory), seed=0)
    message = str(caught.value)
    assert f"{directory}: holds nano_resnet, the recipe wants preset 'nano_vit'" in message


def test_a_directory_that_is_no_model_is_refused(model_section, tmp_path):
    with pytest.raises(CheckpointMismatch, match="expected a model directory"):
        assembly.initial_variables(model_section("nano_vit", tmp_path), seed=0)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_missing_data_folder_is_named_with_the_flag_that_sets_it(data, evaluation, path):
    with pytest.raises(ConfigError, match=rf"data\.path: '{path}' does not .*--config\.data\.path"):
        assembly.build_image_text_source(dataclasses.replace(data, path=path))
    with pytest.raises(ConfigError, match=rf"evaluation\.path: '{path}' does not exist"):
        assembly.build_boxes_source(dataclasses.replace(evaluation, path=path), "evaluation")


def test_a_source_that_does_not_exist_is_refused_before_its_path_is_looked_at(data, evaluation):
    with pytest.raises(ConfigError, match=r"data\.source: 'lmdb' is none of .*'tsv_pairs'"):
        assembly.build_image_text_source(dataclasses.replace(data, source="lmdb", path=""))
    with pytest.raises(ConfigError, match=r"evaluation\.source: 'tsv_pairs' is none of"):
        assembly.build_boxes_source(
            dataclasses.replace(evaluation, source="tsv_pairs"), "evaluation"
        )


def test_a_source_says_at_its_start_what_it_has_and_what_it_left_out(data, tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(b"picture")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.jpg,words\nb.jpg,words\n")
    section = dataclasses.replace(data, source="caption_table", path=str(table))
    with pytest.raises(ConfigError, match=r"data: .*t\.csv: 1 of 2 rows .*10\.00%.* \(3: b\.jpg\)"):
        assembly.build_image_text_source(section)
    with caplog.at_level("INFO"):
        assembly.build_image_text_source(dataclasses.replace(section, fault_fraction=0.5))
    expected = "1 records; images 1, captions 1, rows whose file is missing 1 (3: b.jpg)"
    assert expected in caplog.text


def test_a_source_without_any_record_is_refused(data, tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n")
    section = dataclasses.replace(data, source="caption_table", path=str(tmp_path / "t.csv"))
    with pytest.raises(ConfigError, match=r"data\.path: CaptionTable.* no record .*images 0"):
        assembly.build_image_text_source(section)


def test_masks_are_asked_only_of_sources_that_have_them(evaluation):
    section = dataclasses.replace(evaluation, source="pascal_voc")
    with pytest.raises(ConfigError, match=r"detector\.mask_size: pascal_voc has no masks"):
        assembly.build_boxes_source(section, "data", mask_size=28)


@pytest.mark.parametrize("source", ["webdataset", "tfds", "caption_table"])
def test_sources_of_captions_are_built_by_name(data, tmp_path, source):
    section = dataclasses.replace(data, source=source, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        assembly.build_image_text_source(section)


@pytest.mark.parametrize("source", ["pascal_voc", "tfds", "yolo_labels"])
def test_sources_of_boxes_are_built_by_name(evaluation, tmp_path, source):
    section = dataclasses.replace(evaluation, source=source, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        assembly.build_boxes_source(section, "evaluation")


def test_records_of_the_other_kind_are_refused(data, evaluation):
    with pytest.raises(ConfigError, match=r"data\.path: .* holds detection records; .*image_text"):
        assembly.build_image_text_source(dataclasses.replace(data, path=evaluation.path))
    with pytest.raises(ConfigError, match=r"evaluation\.path: .* holds image_text records"):
        assembly.build_boxes_source(dataclasses.replace(evaluation, path=data.path), "evaluation")


def stream(section, start_record=0, batch_size=8, seed=0):
    source = assembly.build_image_text_source(section)
    return assembly.stream_batches(
        section, source, batch_size=batch_size, seed=seed, start_record=start_record
    )


def same_batch(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_a_stream_goes_on_from_a_record_count_and_follows_the_seed(data):
    whole, rest, other = stream(data), stream(data, start_record=16), stream(data, seed=1)
    batches = [next(whole) for _ in range(4)]
    assert [same_batch(next(rest), batch) for batch in batches[2:]] == [True, True]
    assert not same_batch(next(other), batches[0])
    assert batches[0].tokens.shape == (8, data.context_length)


class Sized:
    """What a plan asks of a source."""

    def __init__(self, sizes):
        self.sizes = lambda: sizes

    def __repr__(self):
        return "Sized()"


def test_canvases_are_planned_where_a_recipe_groups_and_a_source_knows_sizes(data, caplog):
    section = dataclasses.replace(
        data, canvas_sizes=((48, 64), (64, 48), (64, 64)), group_by_canvas=True
    )
    source = Sized(np.array([(48, 60), (60, 40), (48, 64)]))
    with caplog.at_level("INFO"):
        plan = assembly.plan_canvases(section, source)
    assert [plan.canvas(i) for i in range(3)] == [(48, 64), (64, 48), (48, 64)]
    assert f"Sized(): batches of one canvas each; {plan}" in caplog.text
    one, ungrouped = {"canvas_sizes": ((64, 64),)}, {"group_by_canvas": False}
    for changes in (one, ungrouped):
        assert assembly.plan_canvases(dataclasses.replace(section, **changes), source) is None
    assert "does not know" not in caplog.text
    assert assembly.plan_canvases(section, Sized(None)) is None
    assert "Sized() does not know the sizes of its pictures" in caplog.text


@pytest.fixture
def parts(data, drawn, tmp_path):
    """A mixture in place of one source: three records of the first to one of the second."""
    write_array_record([drawn(i, False) for i in range(30, 35)], tmp_path / "few", 64, {})
    paths = (data.path, 3.0), (str(tmp_path / "few"), 1.0)
    parts = tuple(sections.MixturePart("array_record", path, "", weight) for path, weight in paths)
    return dataclasses.replace(data, path="", mixture=parts)


def test_a_mixture_stands_in_place_of_one_source(parts):
    source = assembly.build_image_text_source(parts)
    assert source.shares == (3, 1) and len(source) == 24 + 5
    whole, rest = stream(parts), stream(parts, start_record=16)
    batches = [next(whole) for _ in range(4)]
    assert [same_batch(next(rest), batch) for batch in batches[2:]] == [True, True]


def test_a_mixture_that_cannot_be_is_a_mistake_in_the_recipe(parts, evaluation):
    def refused(message, *changed, **changes):
        section = dataclasses.replace(parts, mixture=(parts.mixture[0], *changed), **changes)
        with pytest.raises(ConfigError, match=message):
            assembly.build_image_text_source(section)

    second = parts.mixture[1]
    refused(r"data\.path: 'somewhere' beside data\.mixture", path="somewhere")
    refused(r"mixture\[1\]\.source: 'lmdb' is none", dataclasses.replace(second, source="lmdb"))
    refused(
        r"mixture\[1\]\.path: 'no' .*--config\.data\.mixture\[1\]\.path=PATH",
        dataclasses.replace(second, path="no"),
    )
    refused(r"mixture\[1\]\.path: .* detection", dataclasses.replace(second, path=evaluation.path))
    refused(r"data\.mixture: weights .*above 0", dataclasses.replace(second, weight=0.0))


@pytest.fixture
def broken_data(data, drawn, tmp_path):
    """One record of eight cannot be used."""
    records = [drawn(i, False) for i in range(7)]
    records.append(ImageTextRecord("torn", records[0].image[:60], ("a ring",)))
    write_array_record(records, tmp_path / "set", 64, {})
    return dataclasses.replace(data, path=str(tmp_path / "set"))


def test_a_record_that_cannot_be_used_is_a_masked_row(broken_data):
    batches = stream(dataclasses.replace(broken_data, fault_fraction=0.2))
    assert [int(next(batches).mask.sum()) for _ in range(3)] == [7, 7, 7]


def test_more_faults_than_the_recipe_allows_stop_the_stream(broken_data):
    with pytest.raises(TooManyFaults, match=r"1 of 8 records .*10\.00%[\s\S]*torn"):
        next(stream(broken_data))
    # As many as the minimum are needed, too.
    batches = stream(dataclasses.replace(broken_data, fault_minimum=3))
    assert [int(next(batches).mask.sum()) for _ in range(2)] == [7, 7]
    with pytest.raises(TooManyFaults, match="3 of 24 records"):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_method": "nearest"}, "nearest"),
        ({"short_sides": (32,)}, "give both"),
        ({"fault_fraction": 2.0}, "within 0 and 1"),
    ],
)
def test_settings_a_stream_cannot_have_are_mistakes_in_the_recipe(data, changes, message):
    with pytest.raises(ConfigError, match=f"data: .*{message}"):
        stream(dataclasses.replace(data, **changes))


def test_a_batch_whose_pictures_fit_no_common_canvas_is_a_mistake_in_the_recipe(data, tmp_path):
    def record(height, width):
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "PNG")
        return ImageTextRecord(f"{height}", file.getvalue(), ("a",))

    write_array_record([record(32, 64), record(64, 32)] * 4, tmp_path / "set", 64, {})
    canvases = ((32, 64), (64, 32))
    section = dataclasses.replace(data, path=str(tmp_path / "set"), canvas_sizes=canvases)
    with pytest.raises(ConfigError, match="data: .*canvas"):
        next(stream(section))


def test_an_evaluation_sees_every_record_once_and_padding_is_no_fault(evaluation):
    source = assembly.build_boxes_source(evaluation, "evaluation")
    batches = list(assembly.detection_pass(evaluation, source))
    assert [int(batch.mask.sum()) for batch in batches] == [8, 8, 4]
    ids = np.concatenate([batch.image_ids[batch.mask] for batch in batches])
    assert ids.tolist() == list(range(1, 21))


def test_the_share_of_faults_in_an_evaluation_is_that_of_the_records(evaluation, drawn, tmp_path):
    records = [drawn(i, True) for i in range(9)]
    records[8] = dataclasses.replace(records[8], image=b"torn")
    write_array_record(records, tmp_path / "set", 64, {"category_names": ["a"]})
    for fraction, is_refused in ((0.1, True), (0.12, False)):
        section = dataclasses.replace(
            evaluation, path=str(tmp_path / "set"), fault_fraction=fraction
        )
        batches = assembly.detection_pass(
            section, assembly.build_boxes_source(section, "evaluation")
        )
        if is_refused:
            with pytest.raises(TooManyFaults, match="1 of 9 records"):
                list(batches)
        else:
            assert [int(batch.mask.sum()) for batch in batches] == [8, 0]


def test_an_image_with_more_boxes_than_rows_is_a_mistake_in_the_recipe(evaluation):
    section = dataclasses.replace(evaluation, max_boxes=1)
    source = assembly.build_boxes_source(section, "evaluation")
    with pytest.raises(ConfigError, match="evaluation: image .* set max_boxes to at least"):
        list(assembly.detection_pass(section, source))


def test_a_batch_that_does_not_divide_among_the_devices_is_a_mistake_in_the_recipe():
    with pytest.raises(ConfigError, match=r"run\.batch_size: .*among 8 devices"):
        assembly.build_mesh(12, "run.batch_size")
    with pytest.raises(ConfigError, match=r"run\.fsdp: 3 does not divide the 8 devices"):
        assembly.build_mesh(8, "run.batch_size", fsdp=3)


def test_the_schedule_is_the_recipe_s(optimizer):
    multistep = dataclasses.replace(optimizer, warmup_steps=4, warmup_factor=0.5, boundaries=(10,))
    rate = assembly.build_schedule(multistep, num_steps=20)
    assert float(rate(0)) == pytest.approx(0.025)
    assert float(rate(5)) == pytest.approx(0.05) and float(rate(11)) == pytest.approx(0.005)
    cosine = dataclasses.replace(optimizer, schedule="cosine", warmup_steps=2)
    rate = assembly.build_schedule(cosine, num_steps=20)
    assert float(rate(2)) == pytest.approx(0.05) and float(rate(20)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match=r"optimizer\.schedule: 'linear' is none of"):
        assembly.build_schedule(dataclasses.replace(optimizer, schedule="linear"), 20)


@pytest.mark.parametrize(
    "changes", [{"kind": "adam"}, {"boundaries": (8, 4)}, {"schedule": "cosine", "warmup_steps": 9}]
)
def test_an_optimizer_that_makes_no_sense_is_a_mistake_in_the_recipe(optimizer, changes):
    with pytest.raises(ConfigError, match="optimizer: "):
        assembly.build_optimizer(dataclasses.replace(optimizer, **changes), num_steps=5)


def test_patterns_decide_what_is_trained_and_one_that_matches_nothing_is_refused(
    optimizer, nano_weights
):
    variables = nano_weights("nano_vit", 0)
    state = assembly.build_state(optimizer, variables, optax.sgd(0.1))
    assert set(state.params) == {"visual"} and set(state.frozen_params) == {"text", "logit_scale"}
    wrong = dataclasses.replace(optimizer, frozen_patterns=("^txt/",))
    with pytest.raises(ConfigError, match=r"optimizer: frozen pattern '\^txt/' matches none"):
        assembly.build_state(wrong, variables, optax.sgd(0.1))


def test_the_objective_gets_every_number_of_its_section_and_the_run_s_seed(regions, run_section):
    # Every number another one, so that none can stand for its neighbour.
    section = dataclasses.replace(
        regions,
        num_proposals=9,
        num_regions=7,
        pre_nms_topk=13,
        proposal_nms_threshold=0.6,
        box_grid=5,
        box_sides=(0.2, 0.7),
        temperature=0.31,
        teacher_temperature=0.37,
        concept_threshold=0.41,
        images_per_group=2,
        regions_per_softmax=4,
        image_text_weight=0.43,
        distillation_weight=0.47,
        contrastive_weight=0.53,
        regions_per_chunk=3,
    )
    run = dataclasses.replace(run_section, seed=59)
    numbers = dataclasses.asdict(section)
    # A path, and a choice that is made outside the objective.
    del numbers["localizer"], numbers["image_text_chunk"]
    expected = PretrainSettings(**numbers, seed=59)
    assert assembly.pretrain_settings(section, run) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_regions": 7}, r"regions\.num_regions: 7 .*regions\.num_proposals 6"),
        ({"box_sides": (0.6, 0.2)}, r"regions\.box_sides: .* at most 1, found \(0\.6, 0\.2\)"),
        ({"box_sides": (0.0, 0.2)}, r"regions\.box_sides: .* above 0"),
        ({"box_sides": (0.5, 1.2)}, r"regions\.box_sides: .* at most 1"),
        ({"images_per_group": 3}, r"regions\.images_per_group: 3 .*run\.batch_size 8"),
        ({"padding": "zero"}, r"regions\.padding: 'zero' is none of \['invisible', 'reference'\]"),
        ({"roi_align": "fast"}, r"regions\.roi_align: 'fast' is none of"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused_naming_its_keys(
    regions, run_section, changes, message
):
    with pytest.raises(ConfigError, match=message):
        assembly.pretrain_settings(dataclasses.replace(regions, **changes), run_section)


def test_one_group_may_be_the_whole_batch(regions, run_section):
    section = dataclasses.replace(regions, images_per_group=None)
    assert assembly.pretrain_settings(section, run_section).images_per_group is None


@pytest.mark.parametrize(
    ("chunk", "num_devices", "form"),
    [
        (None, 8, image_text_loss),
        (16, 1, chunked_image_text_loss),
        (16, 8, ring_image_text_loss),
    ],
)
def test_the_image_text_loss_is_plain_without_a_chunk_and_a_ring_on_several_devices(
    monkeypatch, run_section, chunk, num_devices, form
):
    devices = jax.devices()[:num_devices]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    loss = assembly.build_image_text_loss(chunk, run_section)
    if chunk is None:
        assert loss is form
    else:
        assert loss.func is form and loss.keywords["chunk"] == chunk
