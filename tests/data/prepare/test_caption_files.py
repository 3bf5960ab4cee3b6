import json
import os

import pytest

from regionclip_jax.data.prepare.caption_files import read_captions
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.text_tables import LONGEST_LINE

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
        ("TABLE.CSV", "\ufefffile,caption\n1.jpg,a cat\n2.jpg,two cats, asleep\n"),
        ("captions.txt", "image,caption\n1.jpg,a cat\n1.jpg,two cats, asleep\n"),
        ("captions.txt", "image\tcaption\n1.jpg\ta cat\n1.jpg\ttwo cats, asleep\n"),
        ("bom.txt", "\ufeffa cat\ntwo cats, asleep\n"),
        (
            "table.jsonl",
            '{"text": "a cat", "image": "1.jpg"}\nbroken\n{"text": "two cats, asleep"}\n[]\n',
        ),
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
        ("broken.json", b"{", r"is not JSON .*captions_\*\.json"),
        ("deep.json", b"[" * 10**5, "is not JSON"),
        ("latin.txt", b"caf\xe9\n", "expected UTF-8"),
        ("latin.json", b'{"annotations": "\xe9"}', "is not JSON .*utf-8"),
        ("one_column.tsv", b"a cat\n", "two columns"),
        ("empty.tsv", b"", "is empty"),
        ("lines.json", b'{"caption": "a cat"}\n{}\n', r"JSON lines end in \.jsonl"),
        ("lines.txt", b'{"image": "1.jpg", "text": "a cat"}\n', r"a JSON object .*end in \.jsonl"),
        ("token.txt", b"1.jpg#0\ta cat\n", r"found a tab in .*end in \.tsv"),
        ("captions", b"image,caption\n1.jpg,a cat\n", r"the names of columns .*end in \.csv"),
        ("keys.jsonl", b'{"label": "a cat"}\n', r"keys\.jsonl: expected a column named"),
        ("nameless.csv", b"a cat,1\n", "expected a column named"),
    ],
)
def test_a_file_without_captions_is_refused_with_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_captions(path))
    assert name in str(caught.value)


def test_rows_without_a_caption_are_counted(tmp_path):
    content = b'image,caption,n\n1.jpg,a cat,1\n2.jpg\n3.jpg,caf\xe9,1\n"4.jpg,a dog,1\n5.jpg,,1\n'
    (tmp_path / "table.csv").write_bytes(content)
    skipped = SkippedEntries("rows")
    assert list(read_captions(tmp_path / "table.csv", skipped)) == ["a cat"]
    # The unclosed quotation mark of line 5 does not swallow the lines behind it.
    assert skipped.report == {"rows_without_caption": 2, "rows_that_are_not_utf8": 1}
    assert skipped.named["rows_without_caption"] == ["table.csv 3", "table.csv 5"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        list(read_captions(tmp_path / "nothing.txt"))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.txt", ("a cat", "LONG", "a dog")),
        ("a.csv", ("caption,image", '"a, cat",1', "LONG", '"LONG', "a dog,2")),
        ("a.csv", ("caption,image", "LONG", "a cat,1", '"open,3', "LONG", "a dog,2")),
        ("a.tsv", ("caption\timage", "a cat\t1", "LONG", "a dog\t2")),
        (
            "a.jsonl",
            ('{"caption": "a cat"}', "LONG", '{"caption": "LONG"}', '{"caption": "a dog"}'),
        ),
    ],
)
def test_a_too_long_line_is_skipped_and_counted(tmp_path, name, rows):
    skipped = SkippedEntries("rows")
    text = "\n".join(rows).replace("LONG", "x" * (5 * LONGEST_LINE // 2))
    (tmp_path / name).write_text(text)
    assert [text.strip() for text in read_captions(tmp_path / name, skipped)] in (
        ["a cat", "a dog"],
        ["a, cat", "a dog"],
    )
    num_broken = "".join(rows).count("LONG") + ("open" in text)
    assert skipped.report == {"rows_without_caption": num_broken}


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        list(read_captions(tmp_path / "a.txt"))
