import pytest

from regionclip_jax.assembly.sources import SourceChoice
from regionclip_jax.data.prepare.read_speed import ReadSpeed
from regionclip_jax.jobs import prepare_data


def test_progress_is_measured_from_the_first_record_of_this_run(monkeypatch):
    lines = []
    updates = ((0, 100), (50, 120), (59, 300), (60, 320), (65, 321), (70, 320))
    monkeypatch.setattr(
        prepare_data.logging, "info", lambda text, *values: lines.append(text % values)
    )
    report = prepare_data.log_progress(clock=iter([now for now, _ in updates]).__next__)
    for _, done in updates:
        report(100, done, 1000)
    assert lines == [
        "320/1000 | 20 records/s | 34s left",
        "320/1000 | 10 records/s | 1m 08s left",
    ]


@pytest.mark.parametrize(
    ("source", "share", "verdict"),
    [
        (50.0, "67%", "preparing pays: a core that loads would be 2.73 times as fast"),
        (5000.0, "2%", "preparing changes little for the loader"),
    ],
)
def test_preparing_pays_if_reading_limits_the_loader(
    monkeypatch, pairs_directory, tmp_path, source, share, verdict
):
    speed = ReadSpeed(source, array_record=1000.0, decoding=100.0, image_bytes=2e6)
    monkeypatch.setattr(prepare_data, "measure_reading", lambda *_: speed)
    choice = SourceChoice("array_record", str(pairs_directory), "", 0.0)
    lines = prepare_data.compare_reading(choice, tmp_path / "set", boxes=False, num_records=9)
    assert lines[0] == "24 records, images of 2000.0 kB on average: 0.05 GB"
    assert lines[-2].endswith(share) and lines[-1].startswith(verdict)
