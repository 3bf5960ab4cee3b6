import json

import pytest

from regionclip_jax.data.prepare.caption_files import read_captions

CATS = ["a cat", "two cats, asleep"]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "a cat\n\n  \r\ntwo cats, asleep"),
        ("captions", "a cat\ntwo cats, asleep\n"),
        ("cc3m.tsv", "a cat\thttps://a.b/1.jpg\ntwo cats, asleep\thttp://a.b/2.jpg\n"),
        ("text.tsv", "1\ta cat\n2\ttwo cats, asleep\n"),
        ("text.tsv", '1\t{"captions": ["a cat", "two cats, asleep"], "tags": ["x"]}\n2\n'),
        ("table.tsv", "url\tcaption\nu\ta cat\nu\ttwo cats, asleep\nbroken\n"),
        ("table.csv", 'Title,file\na cat,1.jpg\n"two cats, asleep",2.jpg\n'),
        (
            "captions_val2017.json",
            json.dumps({"images": [], "annotations": [{"id": 1, "caption": c} for c in CATS]}),
        ),
    ],
)
def test_captions_are_read_from_every_file_format(tmp_path, name, text):
    captions = read_captions(write(tmp_path / name, text))
    assert [caption.strip() for caption in captions] == CATS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("instances.json", b'{"annotations": [{"bbox": []}]}', r"captions_\*\.json"),
        ("broken.json", b"{", "expected annotations with captions"),
        ("latin.txt", b"caf\xe9\n", "expected UTF-8"),
        ("latin.json", b'{"annotations": "\xe9"}', "expected UTF-8"),
        ("one_column.tsv", b"a cat\n", "two columns"),
        ("empty.tsv", b"", "two columns"),
        ("nameless.csv", b"a cat,1\n", "expected a column named"),
    ],
)
def test_a_file_without_captions_is_refused_with_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_captions(path))
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        list(read_captions(tmp_path / "nothing.txt"))
