"""Models on the Hugging Face Hub, against a hub on loopback with the real client library."""

import dataclasses
import json
import logging
import re

import numpy as np
import pytest

import regionclip_jax
from hub_server import running_hub
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import load_card, save_model
from regionclip_jax.artifacts.results import write_results
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.commands.push import main as push
from regionclip_jax.failures import ExitStatus
from regionclip_jax.hub import HubError, HubName, HubUnreachable, local_directory, push_to_hub

pytest.importorskip("huggingface_hub")


NOWHERE = "http://127.0.0.1:9"


def connect_to(monkeypatch, endpoint: str) -> None:
    """Set the endpoint in the two places where the client keeps it."""
    from huggingface_hub import constants

    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Running hub, and a client with an empty cache that knows no other."""
    from huggingface_hub import constants

    with running_hub() as hub:
        connect_to(monkeypatch, hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # Its storage has a protocol of its own; without it files travel as LFS objects.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture
def model_directory(tmp_path, nano_variables, nano_configs, nano_localizer):
    directory = tmp_path / "run" / "model"
    card = ModelCard(nano_configs["vit"], {"run": "pretrain", "step": 7})
    save_model(directory, nano_variables("vit"), card)
    localizer, variables = nano_localizer
    localizer = dataclasses.replace(
        localizer, source={"run": "localizer", "classes": ["cat", "a|b"]}
    )
    save_localizer(directory, variables, localizer)
    return directory


def logged(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_a_pushed_model_loads_from_the_hub_and_then_from_the_cache(
    hub, model_directory, caplog, tmp_path
):
    (model_directory / "notes.txt").write_text("of the author alone")
    address = push_to_hub(model_directory, "owner/name")
    ((name, files),) = hub.commits["owner/name"]
    assert address == f"{hub.endpoint}/owner/name/commit/{name}"
    assert "README.md" in files and "card.json" in files and "localizer/card.json" in files
    assert "notes.txt" not in files and not any(".lock" in path for path in files)
    assert len(hub.stored) > 1  # large files travelled as LFS objects

    hub.commits["owner/name"][0][1]["evil.py"] = b"raise SystemExit"
    model = regionclip_jax.load("hf://owner/name", short_side=64, max_long_side=64)
    assert model.directory.is_relative_to(tmp_path / "cache") and model.directory.name == name
    found = {path.relative_to(model.directory).as_posix() for path in model.directory.rglob("*")
             if path.is_file()}  # fmt: skip
    assert found == files.keys() - {"README.md", "evil.py"}
    assert model.card == load_card(model_directory)
    assert model.has_localizer and "copy in the cache" not in logged(caplog)

    hub.status = 503
    with caplog.at_level(logging.WARNING):
        assert local_directory("hf://owner/name") == model.directory
    assert re.search(
        rf"hf://owner/name@main: not read from the Hub .*revision {name}", logged(caplog)
    )


def test_a_revision_is_downloaded_and_a_new_push_removes_old_files(hub, model_directory):
    push_to_hub(model_directory, "owner/name")
    first = hub.commits["owner/name"][0][0]
    hub.commits["owner/name"][0][1]["params/old"] = b"of an earlier model"
    hub.commits["owner/name"][0][1]["figure.png"] = b"of the page"
    push_to_hub(model_directory, "owner/name", licence="apache-2.0")
    second, files = hub.commits["owner/name"][1]
    assert "params/old" not in files and "figure.png" in files
    assert local_directory("hf://owner/name").name == second
    old = local_directory(f"hf://owner/name@{first}")
    assert old.name == first and (old / "params" / "old").is_file()


def test_without_a_connection_the_cache_is_used_and_named(
    hub, model_directory, monkeypatch, caplog, tmp_path
):
    push_to_hub(model_directory, "owner/name")
    directory = local_directory("hf://owner/name")
    connect_to(monkeypatch, NOWHERE)
    with caplog.at_level(logging.WARNING):
        assert local_directory("hf://owner/name") == directory
    assert f"revision {directory.name}" in logged(caplog)
    with pytest.raises(HubUnreachable, match="hf://owner/other@main: the Hub does not answer"):
        local_directory("hf://owner/other")
    with pytest.raises(HubUnreachable, match="does not answer .*push again"):
        push_to_hub(model_directory, "owner/name")
    # Part of a copy is none.
    (directory / "card.json").unlink()
    with pytest.raises(HubUnreachable, match="no complete copy"):
        local_directory("hf://owner/name")


def test_a_model_that_does_not_exist_is_named(hub, model_directory):
    with pytest.raises(HubError, match="hf://owner/none@main: no such model or revision"):
        local_directory("hf://owner/none")
    hub.commit("owner/other", {"pytorch_model.bin": b"weights"})
    with pytest.raises(HubError, match="expected a model directory with card.json"):
        local_directory("hf://owner/other")
    with pytest.raises(HubError, match="hf://owner/other@v2: no such model or revision"):
        local_directory("hf://owner/other@v2")
    with pytest.raises(HubError, match="hf://owner/other@v2: no such"):
        push_to_hub(model_directory, "owner/other@v2")
    hub.status = 403
    with pytest.raises(HubError, match="the Hub refused it .*hf auth login"):
        push_to_hub(model_directory, "owner/other")


def test_changed_files_on_the_hub_are_refused_by_their_digests(hub, model_directory):
    push_to_hub(model_directory, "owner/name")
    files = hub.commits["owner/name"][0][1]
    files["card.json"] = files["card.json"].replace(b'"step": 7', b'"step": 8')
    with pytest.raises(CheckpointMismatch, match="card.json: changed since it was written"):
        load_card(local_directory("hf://owner/name"))


def test_an_incomplete_directory_is_not_pushed(hub, model_directory):
    (model_directory / "localizer" / "card.json").write_text("{}")
    with pytest.raises(CheckpointMismatch, match="localizer.card.json: "):
        push_to_hub(model_directory, "owner/name")
    assert not hub.requests


@pytest.mark.parametrize("name", ["name", "owner/name/more", "owner/name@", "", "../../x y/z"])
def test_other_forms_of_a_name_are_refused(name):
    with pytest.raises(HubError, match="expected hf://owner/name"):
        HubName.parse(f"hf://{name}")


def test_the_page_states_the_facts_of_the_directory(hub, model_directory, capsys):
    from huggingface_hub import ModelCard as ModelPage

    data = {"source": "coco_folder", "split": "train2017", "path": "/private/data"}
    (model_directory.parent / "settings.json").write_text(json.dumps({"data": data}))
    write_results(model_directory.parent / "results.json", {"student": {"AP50": 31.25}}, details={})
    Vocabulary(("cat", "dog"), np.ones((2, 32), np.float32), (), {}).save(
        model_directory / "vocabulary.npz"
    )
    assert push([str(model_directory), "owner/name", "--license", "cc-by-4.0"]) == 0
    assert "written: http" in capsys.readouterr().out
    page = hub.commits["owner/name"][0][1]["README.md"].decode()
    metadata = ModelPage(page).data
    assert metadata.license == "cc-by-4.0" and metadata.library_name == "regionclip_jax"
    assert metadata.pipeline_tag == "zero-shot-object-detection"
    for fact in (
        "image tower vit, text tower clip", "trained by the job pretrain, step 7",
        "coco_folder train2017", "localizer: 2 classes; trained by the job localizer",
        "2 names: cat, dog", "| student | AP50 | 31.25 |", 'load("hf://owner/name")',
    ):  # fmt: skip
        assert fact in page, fact
    assert "/private" not in page
    (model_directory / "README.md").write_text("# My own page\n")
    assert push([str(model_directory), "owner/name"]) == 0
    assert hub.commits["owner/name"][1][1]["README.md"] == b"# My own page\n"
    assert push([str(model_directory), "owner/name", "--license", "mit"]) == ExitStatus.ERROR
    assert "expected no --license beside the directory's own page" in capsys.readouterr().err


def test_an_unreachable_hub_has_its_exit_status(model_directory, monkeypatch, capsys):
    connect_to(monkeypatch, NOWHERE)
    assert push([str(model_directory), "owner/name"]) == ExitStatus.UNREACHABLE
    assert "hf://owner/name@main: the Hub does not answer" in capsys.readouterr().err
