import base64
import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image

from regionclip_jax.data.loading.decoding import decode_image, decode_image_of
from regionclip_jax.data.prepare.preparation import prepare
from regionclip_jax.data.prepare.prepared_record import prepare_record
from regionclip_jax.data.prepare.read_speed import measure_reading
from regionclip_jax.data.prepare.verification import find_damage
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import decode_record
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord, RecordError
from regionclip_jax.data.sources.skipped import SkipCounter, TooManySkipped
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource

ROOT = Path(__file__).parents[3]
NUM_RECORDS = 11

# The tests kill this program. At one record its source waits while a file exists. The first process
# reads records for the fingerprint of the source, so only the workers wait.
PROGRAM = """
import multiprocessing, os, pathlib, sys, time
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.data.prepare.preparation import prepare
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource

class Waiting(TsvPairsSource):
    def __getitem__(self, index):
        if index == 7 and multiprocessing.parent_process() is not None:
            while self._path.with_name("wait").exists():
                time.sleep(0.01)
            if self._path.with_name("die").exists():
                os.kill(os.getpid(), 9)
        return super().__getitem__(index)

if __name__ == "__main__":
    prepare(
        Waiting(sys.argv[1]), sys.argv[2], origin={}, limit=None, shard_size=2, short_side=None,
        check=True, num_workers=2, counter=SkipCounter(0.5, 5), report=lambda *counts: None,
    )
"""


def write_pairs(folder, encoded, captions=None) -> Path:
    """Write a pair of TSV files and return the path of the images."""
    folder.mkdir(exist_ok=True)
    captions = captions or [f"number {i}" for i in range(len(encoded))]
    images = [f"k{i}\t{base64.b64encode(data).decode()}\n" for i, data in enumerate(encoded)]
    texts = [f"k{i}\t{caption}\n" for i, caption in enumerate(captions)]
    (folder / "images.tsv").write_text("".join(images))
    (folder / "text.tsv").write_text("".join(texts))
    return folder / "images.tsv"


@pytest.fixture(scope="module")
def encoded(encode_image):
    return [encode_image(i, 12 + i % 3, 13) for i in range(NUM_RECORDS)]


@pytest.fixture
def pairs(tmp_path, encoded):
    return write_pairs(tmp_path / "pairs", encoded)


def run(source, directory, **changes):
    arguments = {
        "origin": {"from": "a test"},
        "limit": None,
        "shard_size": 4,
        "short_side": None,
        "check": True,
        "num_workers": 1,
        "counter": SkipCounter(0.5, 5),
        "report": lambda *counts: None,
    }
    return prepare(source, directory, **arguments | changes)


def records_of(source):
    """Return the records without the sizes of their images, which only prepared ones have."""
    return [dataclasses.replace(source[i], size=None) for i in range(len(source))]


def test_prepared_records_equal_those_of_the_source_in_order(tmp_path, pairs):
    source, counts = TsvPairsSource(pairs), []
    manifest = run(
        source, tmp_path / "set", num_workers=2, report=lambda *numbers: counts.append(numbers)
    )
    prepared = ArrayRecordSource(tmp_path / "set")
    assert records_of(prepared) == records_of(source)
    assert [shard["count"] for shard in manifest["shards"]] == [4, 4, 3]
    assert manifest["count"] == NUM_RECORDS and manifest["skipped"] == {}
    assert manifest["description"]["source"] == {"from": "a test", "records": NUM_RECORDS}
    assert counts[-1] == (0, NUM_RECORDS, NUM_RECORDS)
    files = {
        "digests.json",
        "manifest.json",
        "sizes.npy",
        *(shard["name"] for shard in manifest["shards"]),
    }
    assert {path.name for path in (tmp_path / "set").iterdir()} == files
    assert find_damage(tmp_path / "set", 2) == []


def test_sizes_equal_those_of_the_decoded_images(tmp_path, pairs):
    run(TsvPairsSource(pairs), tmp_path / "set", limit=5)
    prepared = ArrayRecordSource(tmp_path / "set")
    sizes = prepared.sizes()
    assert sizes.dtype == np.int32
    shapes = [decode_image(r.image, source="", key="").shape[:2] for r in records_of(prepared)]
    assert [tuple(size) for size in sizes] == shapes and len(shapes) == 5


def test_directories_without_sizes_are_read(tmp_path, pairs):
    write_array_record(records_of(TsvPairsSource(pairs)), tmp_path / "set", 4, {})
    source = ArrayRecordSource(tmp_path / "set")
    assert source.sizes() is None
    with pytest.raises(ValueError, match="has no checksums"):
        find_damage(tmp_path / "set", 1)


def start(program, pairs, directory) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, program, pairs, directory],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.command
def test_a_killed_run_resumes_without_missing_or_duplicate_records(tmp_path, pairs, program):
    waiting = pairs.with_name("wait")
    waiting.touch()
    process = start(program, pairs, tmp_path / "set")
    unfinished = tmp_path / "set" / "unfinished"
    others = {0, 1, 2, 4, 5}  # record 7 is in shard 3
    notes = [unfinished / f"shard-{number:05d}.json" for number in others]
    deadline = time.monotonic() + 120
    while not all(note.exists() for note in notes) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert list(unfinished.glob("shard-00003*.partial-*"))
    with pytest.raises(FileNotFoundError, match="not complete: run .* again"):
        ArrayRecordSource(tmp_path / "set")

    written = {path.name: path.stat() for path in (tmp_path / "set").glob("shard-*")}
    assert len(written) == len(others)
    waiting.unlink()
    again = start(program, pairs, tmp_path / "set")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    for name, before in written.items():
        after = (tmp_path / "set" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    source, prepared = TsvPairsSource(pairs), ArrayRecordSource(tmp_path / "set")
    assert records_of(prepared) == records_of(source)
    undisturbed = run(source, tmp_path / "undisturbed", shard_size=2, num_workers=2)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert [manifest[key] for key in ("shards", "sizes")] == [
        undisturbed[key] for key in ("shards", "sizes")
    ]
    assert find_damage(tmp_path / "set", 1) == []


@pytest.mark.command
def test_a_killed_worker_stops_the_run_with_the_remedy(tmp_path, pairs, program):
    pairs.with_name("die").touch()
    process = start(program, pairs, tmp_path / "set")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "a worker process was killed" in errors
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_skipped_records_are_named_and_counted_by_reason(tmp_path, encoded):
    broken = [*encoded[:4], encoded[4][:-200], b"no image", *encoded[6:]]
    captions = [f"number {i}" for i in range(NUM_RECORDS)]
    captions[8] = " "
    path = write_pairs(tmp_path / "pairs", broken, captions)
    texts = path.with_name("text.tsv")
    texts.write_text(texts.read_text().replace("k2", "of another image"))
    source, counter = TsvPairsSource(path), SkipCounter(0.9, 5)
    manifest = run(source, tmp_path / "set", counter=counter)
    assert {reason: entry["count"] for reason, entry in manifest["skipped"].items()} == {
        "unreadable record": 1,
        "broken picture": 2,
        "no caption": 1,
    }
    named = [text for entry in manifest["skipped"].values() for text in entry["first"]]
    assert all(any(f"record k{i}:" in text for text in named) for i in (2, 4, 5, 8))
    prepared = ArrayRecordSource(tmp_path / "set")
    assert [record.key for record in records_of(prepared)] == "k0 k1 k3 k6 k7 k9 k10".split()
    assert len(prepared.sizes()) == 7
    assert (counter.num_records, counter.num_skipped) == (NUM_RECORDS, 4)


def test_too_many_skipped_records_leave_an_incomplete_directory(tmp_path, encoded):
    path = write_pairs(tmp_path / "pairs", [*encoded[:4], *[b"broken"] * 6, *encoded[:4]])
    with pytest.raises(TooManySkipped, match="4 of 8 .*limit of 10.00%"):
        run(TsvPairsSource(path), tmp_path / "set", counter=SkipCounter(0.1, 2))
    with pytest.raises(FileNotFoundError, match="not complete"):
        ArrayRecordSource(tmp_path / "set")
    # Complete shards are kept, and their skipped records are counted.
    raised = SkipCounter(0.5, 2)
    manifest = run(TsvPairsSource(path), tmp_path / "set", counter=raised)
    assert manifest["count"] == 8 and (raised.num_records, raised.num_skipped) == (14, 6)


def test_a_shard_without_records_is_not_written(tmp_path, encoded):
    path = write_pairs(tmp_path / "pairs", [*encoded[:2], b"", b"", *encoded[2:4]])
    manifest = run(TsvPairsSource(path), tmp_path / "set", shard_size=2)
    assert [shard["name"][:11] for shard in manifest["shards"]] == ["shard-00000", "shard-00002"]
    assert len(ArrayRecordSource(tmp_path / "set")) == 4


def test_a_source_of_only_skipped_records_is_refused_with_the_reason(tmp_path):
    path = write_pairs(tmp_path / "pairs", [b"", b""])
    with pytest.raises(ValueError, match="none of the 2 records .* record k0: 0 bytes"):
        run(TsvPairsSource(path), tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_complete_directory_is_kept_and_another_is_not_overwritten(tmp_path, pairs):
    source = TsvPairsSource(pairs)
    first = run(source, tmp_path / "set", limit=2)
    assert run(source, tmp_path / "set", limit=2) == first
    with pytest.raises(FileExistsError, match="holds another data set .differing in records"):
        run(source, tmp_path / "set", limit=3)
    with pytest.raises(FileExistsError, match="no prepared data"):
        run(source, pairs.parent)
    (tmp_path / "begun" / "unfinished").mkdir(parents=True)
    (tmp_path / "begun" / "unfinished" / "plan.json").write_text("{}")
    with pytest.raises(FileExistsError, match="was begun with other arguments .*records"):
        run(source, tmp_path / "begun")
    plan = tmp_path / "begun" / "unfinished" / "plan.json"
    plan.write_text(json.dumps({**first["description"], "data": "of other images"}))
    with pytest.raises(FileExistsError, match=r"was begun with other arguments .*in data\)"):
        run(source, tmp_path / "begun", limit=2)
    with pytest.raises(ValueError, match="shard_size 0"):
        run(source, tmp_path / "none", shard_size=0)


def test_damaged_files_are_detected_and_named(tmp_path, pairs):
    manifest = run(TsvPairsSource(pairs), tmp_path / "set")
    names = [shard["name"] for shard in manifest["shards"]]
    shard = tmp_path / "set" / names[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (tmp_path / "set" / names[2]).unlink()
    sizes = tmp_path / "set" / "sizes.npy"
    sizes.write_bytes(sizes.read_bytes()[:-1])
    changed, missing, cut = find_damage(tmp_path / "set", 2)
    assert names[1] in changed and "SHA-256" in changed
    assert names[2] in missing and missing.endswith("missing")
    assert "sizes.npy" in cut and "expected 216" in cut


@pytest.fixture(scope="module")
def intact(encoded, tmp_path_factory):
    """A prepared directory of six records."""
    folder = tmp_path_factory.mktemp("prepared")
    run(TsvPairsSource(write_pairs(folder / "pairs", encoded)), folder / "set", limit=6)
    return folder / "set"


@pytest.mark.property
@given(data=strategies.data())
def test_no_random_bit_of_a_prepared_directory_changes_a_record(intact, tmp_path_factory, data):
    """Opening or reading fails, or every record is the same; --verify finds all but blanks."""
    name = data.draw(strategies.sampled_from(sorted(path.name for path in intact.iterdir())))
    folder = shutil.copytree(intact, tmp_path_factory.mktemp("flipped") / "set")
    content = bytearray((folder / name).read_bytes())
    bit = data.draw(strategies.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(content)
    try:
        assert find_damage(folder, 1) or name == "digests.json"
    except ValueError as error:
        assert str(folder / name) in str(error) or str(folder / "digests.json") in str(error)
    try:
        source = ArrayRecordSource(folder)
    except (ValueError, FileNotFoundError):
        return
    whole = ArrayRecordSource(intact)
    np.testing.assert_array_equal(source.sizes(), whole.sizes())
    assert len(source) == len(whole) and source.description == whole.description
    for index in range(len(source)):
        try:
            assert source[index] == whole[index]
        except RecordError:
            assert name.startswith("shard-")


def test_a_shard_with_a_damaged_note_is_written_again(tmp_path, encoded):
    """A changed size of an image is not copied into the directory."""
    path = write_pairs(tmp_path / "pairs", [*encoded[:4], *[b"broken"] * 6, *encoded[:4]])
    with pytest.raises(TooManySkipped):
        run(TsvPairsSource(path), tmp_path / "set", counter=SkipCounter(0.1, 2))
    note = tmp_path / "set" / "unfinished" / "shard-00000.json"
    text = " ".join(note.read_text().split())
    assert '"sides": [ 1' in text
    note.write_text(text.replace('"sides": [ 1', '"sides": [ 2', 1))
    # The shard of broken images alone may be counted before the first.
    run(TsvPairsSource(path), tmp_path / "set", counter=SkipCounter(1.0, 2))
    prepared = ArrayRecordSource(tmp_path / "set")
    assert [tuple(size) for size in prepared.sizes()] == [prepared[i].size for i in range(8)]


def jpeg(height, width, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def prepared(record, **changes):
    outcome = prepare_record([record], 0, **{"short_side": None, "check": True} | changes)
    return decode_record(outcome.data), outcome.size


def test_only_larger_images_are_resized_with_their_boxes():
    box = np.array([[10, 20, 40, 60]], np.float32)
    record = DetectionRecord(
        "k", jpeg(80, 120), box, np.zeros(1, np.int32), np.zeros(1, bool), 1, ("a cat",)
    )
    smaller, size = prepared(record, short_side=40)
    assert size == (40, 60) == decode_image(smaller.image, source="", key="").shape[:2]
    with Image.open(io.BytesIO(smaller.image)) as image:
        assert image.format == "JPEG"
    np.testing.assert_array_equal(smaller.boxes, box / 2)
    for short_side in (80, 81, None):
        same, size = prepared(record, short_side=short_side)
        assert same.image == record.image and size == (80, 120)
        np.testing.assert_array_equal(same.boxes, box)


@pytest.mark.parametrize("short_side", [None, 10])
@pytest.mark.parametrize("annotated", [None, (30, 20), (20, 30)])
def test_a_prepared_record_keeps_the_orientation_that_the_annotated_size_decided(
    annotated, short_side
):
    turned = Image.Exif()
    turned[0x0112] = 6
    record = DetectionRecord(
        "k",
        jpeg(20, 30, exif=turned),
        np.array([[2, 4, 8, 6]], np.float32),
        np.zeros(1, np.int32),
        np.zeros(1, bool),
        1,
        size=annotated,
    )
    height, width = annotated or (30, 20)
    stored, size = prepared(record, short_side=short_side)
    factor = 1 if short_side is None else 2
    assert size == stored.size == (height // factor, width // factor)
    assert decode_image_of(stored, "S").shape[:2] == size
    np.testing.assert_array_equal(stored.boxes, record.boxes / factor)


@pytest.mark.parametrize("check", [True, False])
def test_an_image_of_another_size_than_annotated_is_skipped_with_its_own_reason(check):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    record = DetectionRecord("k", jpeg(20, 30), *empty, 1, size=(40, 60))
    skipped = prepare_record([record], 0, short_side=None, check=check)
    assert skipped.reason == "image of another size than annotated"
    assert "it was resized without its annotations" in skipped.text


def test_without_the_check_only_headers_are_read():
    whole = ImageTextRecord("k", jpeg(30, 40), ("a cat",))
    cut = dataclasses.replace(whole, image=whole.image[:-300])
    assert prepare_record([cut], 0, short_side=None, check=True).reason == "broken picture"
    stored, size = prepared(cut, check=False)
    assert stored == dataclasses.replace(cut, size=(30, 40)) and size == (30, 40)
    headless = dataclasses.replace(whole, image=whole.image[:10])
    assert prepare_record([headless], 0, short_side=None, check=False).reason == "broken picture"


def test_tags_replace_a_missing_caption():
    tagged = ImageTextRecord("k", jpeg(30, 40), (), ("cat", "sofa"))
    assert prepared(tagged)[0] == dataclasses.replace(tagged, size=(30, 40))


def test_the_read_speed_is_measured_on_readable_records(tmp_path, pairs, encoded):
    speed = measure_reading(TsvPairsSource(pairs), tmp_path, 6)
    assert min(speed.source, speed.array_record, speed.decoding) > 0
    sums = {sum(map(len, chosen)) / 6 for chosen in itertools.combinations(encoded, 6)}
    assert speed.image_bytes in sums
    slow = speed._replace(source=10.0, array_record=90.0, decoding=90.0)
    assert slow.gain == pytest.approx(5.0)
    with pytest.raises(ValueError, match="none of 1 records"):
        measure_reading(TsvPairsSource(write_pairs(tmp_path / "broken", [b""])), tmp_path, 6)
    assert {path.name for path in tmp_path.iterdir()} == {"pairs", "broken"}
