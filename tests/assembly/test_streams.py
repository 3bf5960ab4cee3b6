import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from regionclip_jax import settings as sections
from regionclip_jax.assembly.sources import (
    SourceChoice,
    build_boxes_source,
    build_image_text_source,
    open_image_text_source,
)
from regionclip_jax.assembly.streams import DetectionPass, assign_buckets, stream_batches
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.records import ImageTextRecord
from regionclip_jax.data.sources.skipped import TooManySkipped
from regionclip_jax.settings import ConfigError
from regionclip_jax.text.tokenizer import TokenizerSource


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_missing_data_folder_is_refused_with_its_flag(data, evaluation, path):
    with pytest.raises(ConfigError, match=rf"data\.path: '{path}' does not .*--config\.data\.path"):
        build_image_text_source(dataclasses.replace(data, path=path))
    with pytest.raises(ConfigError, match=rf"evaluation\.path: '{path}' does not exist"):
        build_boxes_source(dataclasses.replace(evaluation, path=path), "evaluation")


def test_an_unknown_source_is_refused_before_its_path_is_read(data, evaluation):
    with pytest.raises(ConfigError, match="source: 'lmdb' is none of .*'tsv_pairs'"):
        dataclasses.replace(data, source="lmdb")
    with pytest.raises(ConfigError, match="source: 'tsv_pairs' is none of"):
        dataclasses.replace(evaluation, source="tsv_pairs")
    choice = SourceChoice("lmdb", "", "", 0.0)
    with pytest.raises(ConfigError, match=r"data\.source: 'lmdb' is none of .*'tsv_pairs'"):
        open_image_text_source(choice, "data")
    with pytest.raises(ConfigError, match=r"data\.source: 'lmdb' is none of .*'yolo_labels'"):
        build_boxes_source(choice, "data")


def test_a_source_logs_the_counts_of_its_records_and_skipped_rows(data, tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(b"picture")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.jpg,words\nb.jpg,words\n")
    section = dataclasses.replace(data, source="caption_table", path=str(table))
    with pytest.raises(ConfigError, match=r"data: .*t\.csv: 1 of 2 rows .*10\.00%.* \(3: b\.jpg\)"):
        build_image_text_source(section)
    with caplog.at_level("INFO"):
        build_image_text_source(dataclasses.replace(section, max_skipped_fraction=0.5))
    expected = "1 records; images 1, captions 1, rows whose file is missing 1 (3: b.jpg)"
    assert expected in caplog.text


def test_a_source_without_any_record_is_refused(data, tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n")
    section = dataclasses.replace(data, source="caption_table", path=str(tmp_path / "t.csv"))
    with pytest.raises(ConfigError, match=r"data\.path: CaptionTable.* no record .*images 0"):
        build_image_text_source(section)


def test_masks_of_a_source_without_masks_are_refused(evaluation):
    section = dataclasses.replace(evaluation, source="pascal_voc")
    with pytest.raises(ConfigError, match=r"detector\.mask_size: pascal_voc has no masks"):
        build_boxes_source(section, "data", mask_size=28)


@pytest.mark.parametrize("source", ["webdataset", "tfds", "caption_table"])
def test_sources_of_captions_are_built_by_name(data, tmp_path, source):
    section = dataclasses.replace(data, source=source, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        build_image_text_source(section)


@pytest.mark.parametrize("source", ["pascal_voc", "tfds", "yolo_labels"])
def test_sources_of_boxes_are_built_by_name(evaluation, tmp_path, source):
    section = dataclasses.replace(evaluation, source=source, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        build_boxes_source(section, "evaluation")


def test_records_of_the_wrong_type_are_refused(data, evaluation):
    with pytest.raises(ConfigError, match=r"data\.path: .* holds detection records; .*image_text"):
        build_image_text_source(dataclasses.replace(data, path=evaluation.path))
    with pytest.raises(ConfigError, match=r"evaluation\.path: .* holds image_text records"):
        build_boxes_source(dataclasses.replace(evaluation, path=data.path), "evaluation")


def stream(section, start_record=0, batch_size=8, seed=0):
    source = build_image_text_source(section)
    return stream_batches(
        section,
        source,
        tokenizer=TokenizerSource("clip"),
        batch_size=batch_size,
        seed=seed,
        start_record=start_record,
    )


def same_batch(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_a_stream_resumes_at_a_record_count_and_depends_on_the_seed(data):
    whole, rest, other = stream(data), stream(data, start_record=16), stream(data, seed=1)
    batches = [next(whole) for _ in range(4)]
    assert [same_batch(next(rest), batch) for batch in batches[2:]] == [True, True]
    assert not same_batch(next(other), batches[0])
    assert batches[0].tokens.shape == (8, data.context_length)


class Sized:
    """Source with known image sizes."""

    def __init__(self, sizes):
        self.sizes = lambda: sizes

    def __repr__(self):
        return "Sized()"


def test_buckets_are_assigned_if_a_recipe_groups_and_the_sizes_are_known(data, caplog):
    section = dataclasses.replace(
        data, canvas_sizes=((48, 64), (64, 48), (64, 64)), group_by_canvas=True
    )
    source = Sized(np.array([(48, 60), (60, 40), (48, 64)]))
    with caplog.at_level("INFO"):
        buckets = assign_buckets(section, source)
    assert [buckets.canvas(i) for i in range(3)] == [(48, 64), (64, 48), (48, 64)]
    assert f"Sized(): batches of one canvas each; {buckets}" in caplog.text
    one, ungrouped = {"canvas_sizes": ((64, 64),)}, {"group_by_canvas": False}
    for changes in (one, ungrouped):
        assert assign_buckets(dataclasses.replace(section, **changes), source) is None
    assert "does not know" not in caplog.text
    assert assign_buckets(section, Sized(None)) is None
    assert "Sized() does not know the sizes of its images" in caplog.text


@pytest.fixture
def parts(data, scene_record, tmp_path):
    """Settings of a mixture with three records of the first source to one of the second."""
    write_array_record([scene_record(i, False) for i in range(30, 35)], tmp_path / "few", 64, {})
    paths = (data.path, 3.0), (str(tmp_path / "few"), 1.0)
    parts = tuple(sections.MixturePart("array_record", path, "", weight) for path, weight in paths)
    return dataclasses.replace(data, path="", mixture=parts)


def test_a_mixture_is_used_like_one_source(parts):
    source = build_image_text_source(parts)
    assert source.shares == (3, 1) and len(source) == 24 + 5
    whole, rest = stream(parts), stream(parts, start_record=16)
    batches = [next(whole) for _ in range(4)]
    assert [same_batch(next(rest), batch) for batch in batches[2:]] == [True, True]


def test_an_invalid_mixture_is_a_config_error(parts, evaluation):
    def refused(message, *changed):
        section = dataclasses.replace(parts, mixture=(parts.mixture[0], *changed))
        with pytest.raises(ConfigError, match=message):
            build_image_text_source(section)

    second = parts.mixture[1]
    with pytest.raises(ConfigError, match=r"path: 'somewhere' beside mixture"):
        dataclasses.replace(parts, path="somewhere")
    with pytest.raises(ConfigError, match="source: 'lmdb' is none of .*'tsv_pairs'"):
        dataclasses.replace(second, source="lmdb")
    refused(
        r"mixture\[1\]\.path: 'no' .*--config\.data\.mixture\[1\]\.path=PATH",
        dataclasses.replace(second, path="no"),
    )
    refused(r"mixture\[1\]\.path: .* detection", dataclasses.replace(second, path=evaluation.path))
    with pytest.raises(ConfigError, match="weight: expected a number above 0, found 0"):
        dataclasses.replace(second, weight=0.0)


@pytest.fixture
def broken_data(data, scene_record, tmp_path):
    """Settings of eight records, one with a truncated image."""
    records = [scene_record(i, False) for i in range(7)]
    records.append(ImageTextRecord("torn", records[0].image[:60], ("a ring",)))
    write_array_record(records, tmp_path / "set", 64, {})
    return dataclasses.replace(data, path=str(tmp_path / "set"))


def test_a_skipped_record_is_a_masked_row(broken_data):
    batches = stream(dataclasses.replace(broken_data, max_skipped_fraction=0.2))
    assert [int(next(batches).mask.sum()) for _ in range(3)] == [7, 7, 7]


def test_more_skipped_records_than_the_recipe_allows_stop_the_stream(broken_data):
    with pytest.raises(TooManySkipped, match=r"1 of 8 records .*10\.00%[\s\S]*torn"):
        next(stream(broken_data))
    # The stream stops only at the minimum number of skipped records.
    batches = stream(dataclasses.replace(broken_data, min_skipped_records=3))
    assert [int(next(batches).mask.sum()) for _ in range(2)] == [7, 7]
    with pytest.raises(TooManySkipped, match="3 of 24 records"):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_sides": (32,)}, "data: .*give both"),
        ({"max_skipped_fraction": 2.0}, "max_skipped_fraction: expected a number from 0 to 1"),
    ],
)
def test_invalid_stream_settings_are_a_config_error(data, changes, message):
    with pytest.raises(ConfigError, match=message):
        stream(dataclasses.replace(data, **changes))


def test_images_without_a_common_canvas_are_a_config_error(data, tmp_path):
    def record(height, width):
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "PNG")
        return ImageTextRecord(f"{height}", file.getvalue(), ("a",))

    write_array_record([record(32, 64), record(64, 32)] * 4, tmp_path / "set", 64, {})
    canvases = ((32, 64), (64, 32))
    section = dataclasses.replace(data, path=str(tmp_path / "set"), canvas_sizes=canvases)
    with pytest.raises(ConfigError, match="data: .*canvas"):
        next(stream(section))


def test_an_evaluation_reads_every_record_once_and_padding_is_not_counted_as_skipped(evaluation):
    source = build_boxes_source(evaluation, "evaluation")
    batches = list(DetectionPass(evaluation, source))
    assert [int(batch.mask.sum()) for batch in batches] == [8, 8, 4]
    ids = np.concatenate([batch.image_ids[batch.mask] for batch in batches])
    assert ids.tolist() == list(range(1, 21))


def test_the_fraction_of_skipped_records_in_an_evaluation_excludes_padding(
    evaluation, scene_record, tmp_path
):
    records = [scene_record(i, True) for i in range(9)]
    records[8] = dataclasses.replace(records[8], image=b"torn")
    write_array_record(records, tmp_path / "set", 64, {"category_names": list("abcdefghijklmnop")})
    for fraction, is_refused in ((0.1, True), (0.12, False)):
        section = dataclasses.replace(
            evaluation, path=str(tmp_path / "set"), max_skipped_fraction=fraction
        )
        batches = DetectionPass(section, build_boxes_source(section, "evaluation"))
        if is_refused:
            with pytest.raises(TooManySkipped, match="1 of 9 records"):
                list(batches)
        else:
            assert [int(batch.mask.sum()) for batch in batches] == [8, 0]


def test_an_image_with_more_boxes_than_rows_is_a_config_error(evaluation):
    section = dataclasses.replace(evaluation, max_boxes=1)
    source = build_boxes_source(section, "evaluation")
    with pytest.raises(ConfigError, match="evaluation: image .* set max_boxes to at least"):
        list(DetectionPass(section, source))
