import os
import pickle

import pytest

from regionclip_jax.data.sources.fingerprint import fingerprint
from regionclip_jax.data.sources.image_folder import ImageFolderSource
from regionclip_jax.data.sources.records import RecordError, Source


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "more/deep/c.webp", "more/notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_images_at_any_depth_are_records_by_name(folder):
    source = pickle.loads(pickle.dumps(ImageFolderSource(folder)))
    assert isinstance(source, Source) and source.sizes() is None
    records = [source[i] for i in range(len(source))]
    assert [(r.key, r.image) for r in records] == [
        ("a.png", b"a.png"),
        ("b.JPG", b"b.JPG"),
        ("more/deep/c.webp", b"more/deep/c.webp"),
    ]
    assert {r.captions for r in records} == {()}
    assert source.report == {"images": 3, "other_files": 1}


def test_the_fingerprint_depends_on_names_and_not_on_the_folder(folder, tmp_path):
    before = fingerprint(ImageFolderSource(folder))
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}_moved")
    assert fingerprint(ImageFolderSource(moved)) == before
    (moved / "a.png").rename(moved / "d.png")
    assert fingerprint(ImageFolderSource(moved)) != before


def test_a_folder_without_images_and_a_file_are_refused(folder):
    with pytest.raises(ValueError, match=r"path: .* has no image file, expected .*\.jpg"):
        (folder / "empty").mkdir()
        ImageFolderSource(folder / "empty")
    with pytest.raises(ValueError, match="is a file, expected a folder of image files"):
        ImageFolderSource(folder / "a.png")


def test_an_image_that_was_deleted_is_a_record_error(folder):
    source = ImageFolderSource(folder)
    (folder / "a.png").unlink()
    with pytest.raises(RecordError, match=r"ImageFolderSource.*a\.png: cannot be read"):
        source[0]


def test_a_pipe_is_a_record_error_and_a_folder_with_the_ending_of_an_image_is_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "a.png").write_bytes(b"a")
    source = ImageFolderSource(tmp_path)
    assert len(source) == 2 and source[0].key == "folder.jpg/a.png"
    with pytest.raises(RecordError, match=r"pipe\.jpg: cannot be read"):
        source[1]
