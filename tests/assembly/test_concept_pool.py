import jax
import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder, text_tower_hash
from regionclip_jax.assembly import concept_pool
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import ConceptSettings, ConfigError, UserError
from regionclip_jax.text.prompts import TEMPLATES, prompts_for
from regionclip_jax.text.tokenizer import tokenizer_named

NAMES = ("cat", "traffic light", "tree")


def section(names_file) -> ConceptSettings:
    return ConceptSettings(names_file=str(names_file), templates="plain")


@pytest.fixture(scope="module")
def clip(nano_presets, nano_weights):
    return CLIP(PRESETS["nano_vit"]), nano_weights("nano_vit", 0)


@pytest.fixture
def counted(monkeypatch):
    """Names embedded by each call of a mocked ``embed_names`` with new values in every call."""
    calls = []

    def embed(model, variables, names, templates, tokenizer):
        assert tokenizer is None
        calls.append(tuple(names))
        return Vocabulary(
            tuple(names),
            np.random.default_rng(len(calls)).random((len(names), 12), np.float32),
            {"plain": concept_pool.PLAIN_TEMPLATES, "clip": TEMPLATES}[templates],
            describe_encoder(model.config, variables["params"]),
        )

    monkeypatch.setattr(concept_pool, "embed_names", embed)
    return calls


def test_names_are_read_one_per_line_without_counts(tmp_path):
    file = tmp_path / "nouns.txt"
    file.write_text("cat\t120\n\ntraffic light , 7\n  tree  \n", encoding="utf-8")
    assert concept_pool.pool_names(section(file), ("unused",)) == NAMES


def test_without_a_file_the_given_names_are_used_or_the_file_key_is_named():
    assert concept_pool.pool_names(section(""), ["a", "b"]) == ("a", "b")
    with pytest.raises(ConfigError, match=r"concepts\.names_file=PATH"):
        concept_pool.pool_names(section(""), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected names .* found none"),
        (b" \n\t5\n", "found an empty name at line 2"),
        (b"cat\ndog\ncat\t3\n", "'cat' more than once, at line 1 and line 3"),
        (b"caf\xe9\n", "codec can't decode"),
    ],
)
def test_an_invalid_names_file_is_refused_with_its_path(tmp_path, content, message):
    file = tmp_path / "nouns.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        concept_pool.pool_names(section(file), NAMES)
    assert "concepts.names_file" in str(caught.value) and str(file) in str(caught.value)


def test_a_missing_names_file_is_refused_without_a_fallback(tmp_path):
    with pytest.raises(ConfigError, match=r"nouns\.txt does not exist"):
        concept_pool.pool_names(section(tmp_path / "nouns.txt"), NAMES)


def test_an_embedding_is_the_mean_over_templates_at_full_context_length(clip):
    model, variables = clip
    # The names need several calls, and the last call is padded.
    names = [*NAMES, *(f"a thing with number {n}" for n in range(8))]
    vocabulary = concept_pool.embed_names(model, variables, names, "plain")
    assert vocabulary.names == tuple(names)
    assert vocabulary.templates == concept_pool.PLAIN_TEMPLATES
    encode = jax.jit(lambda v, tokens: model.apply(v, tokens, method=model.encode_text))
    for row in (0, 1, len(names) - 1):
        prompts = prompts_for(names[row], concept_pool.PLAIN_TEMPLATES)
        assert len(prompts) == len(concept_pool.PLAIN_TEMPLATES)
        features = np.asarray(encode(variables, tokenizer_named("clip")(prompts, 77)))
        np.testing.assert_allclose(
            vocabulary.embeddings[row], features.mean(0), rtol=1e-4, atol=1e-5
        )
    assert np.ptp(np.linalg.norm(vocabulary.embeddings, axis=1)) > 1e-3  # raw, not normalised


def test_the_templates_of_the_paper_are_accepted_and_unknown_ones_are_refused(clip):
    vocabulary = concept_pool.embed_names(*clip, ["cat"], "clip")
    assert vocabulary.templates == tuple(TEMPLATES) and vocabulary.embeddings.shape == (1, 12)
    with pytest.raises(ConfigError, match=r"'long' is none of \['clip', 'plain'\]"):
        concept_pool.embed_names(*clip, ["cat"], "long")


def test_a_pool_is_embedded_once_and_then_read_from_its_file(clip, tmp_path, counted):
    path = tmp_path / "vocabulary.npz"
    first = concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")
    again = concept_pool.cached_vocabulary(path, *clip, list(NAMES), "plain")
    assert counted == [NAMES]
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert again.encoder["parameters_sha256"] == text_tower_hash(clip[1]["params"])


@pytest.mark.parametrize("changed_part", ["templates", "text tower"])
def test_other_prompts_or_weights_replace_the_cached_pool(
    clip, nano_weights, tmp_path, counted, changed_part
):
    path, (model, variables) = tmp_path / "vocabulary.npz", clip
    first = concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")
    templates = "clip" if changed_part == "templates" else "plain"
    if changed_part == "text tower":
        variables = nano_weights("nano_vit", 1)
    other = concept_pool.cached_vocabulary(path, model, variables, NAMES, templates)
    assert counted == [NAMES, NAMES] and other.names == NAMES
    assert not np.array_equal(other.embeddings, first.embeddings)
    # The file has the new pool now.
    concept_pool.cached_vocabulary(path, model, variables, NAMES, templates)
    assert len(counted) == 2


def test_only_new_names_of_a_pool_are_embedded(clip, tmp_path, counted):
    path = tmp_path / "vocabulary.npz"
    first = concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")
    grown = concept_pool.cached_vocabulary(path, *clip, ("tree", "dog", "cat"), "plain")
    assert counted == [NAMES, ("dog",)] and grown.names == ("tree", "dog", "cat")
    np.testing.assert_array_equal(grown.embeddings[[2, 0]], first.embeddings[[0, 2]])
    # Another order needs no embedding, and the file has the last requested order.
    reordered = concept_pool.cached_vocabulary(path, *clip, ("cat", "dog", "tree"), "plain")
    assert len(counted) == 2
    np.testing.assert_array_equal(reordered.embeddings, grown.embeddings[::-1])
    assert Vocabulary.load(path).names == ("cat", "dog", "tree")


def test_an_embedding_is_bit_identical_with_any_other_names(clip):
    long = "a thing " * 12 + "!"
    names = ["cat", long, *(f"thing number {n}" for n in range(12)), "wow!"]
    together = concept_pool.embed_names(*clip, names, "plain").embeddings
    for rows in ([0], [1, 14], [14, 3, 0]):
        alone = concept_pool.embed_names(*clip, [names[row] for row in rows], "plain").embeddings
        np.testing.assert_array_equal(alone, together[rows])


def test_calls_have_few_shapes_and_contain_every_name_once(monkeypatch):
    monkeypatch.setattr(concept_pool, "_TOKENS_PER_CALL_ON_CPUS", 256)
    monkeypatch.setattr(concept_pool, "_WIDTH_STEP_ON_CPUS", 16)
    names = [f"thing {n} " + "word " * (n % 7 * 10) for n in range(40)]
    text, tokenize = PRESETS["RN50"].text, tokenizer_named("clip")
    calls = list(concept_pool._calls(names, concept_pool.PLAIN_TEMPLATES, text, tokenize))
    assert sorted(row for rows, _ in calls for row in rows) == list(range(40))
    assert {tokens.shape[1] for _, tokens in calls} <= {16, 32, 48, 64, 77}
    for rows, tokens in calls:
        assert len(tokens) == max(1, 256 // (tokens.shape[1] * 5)) * 5
        for index, row in enumerate(rows):
            texts = prompts_for(names[row], concept_pool.PLAIN_TEMPLATES)
            prompts = tokenizer_named("clip")(texts, 77)
            actual = tokens[index * 5 : index * 5 + 5]
            np.testing.assert_array_equal(actual, prompts[:, : tokens.shape[1]])
            assert not prompts[:, tokens.shape[1] :].any()


def test_other_image_weights_with_the_same_text_tower_share_the_pool(
    clip, nano_weights, tmp_path, counted
):
    path, (model, variables) = tmp_path / "vocabulary.npz", clip
    concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")
    params = {**nano_weights("nano_vit", 1)["params"], "text": variables["params"]["text"]}
    same_words = {"params": params, "batch_stats": {}}
    concept_pool.cached_vocabulary(path, model, same_words, NAMES, "plain")
    assert counted == [NAMES]


def test_a_damaged_pool_is_refused_with_its_file(clip, tmp_path, counted):
    path = tmp_path / "vocabulary.npz"
    concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointMismatch, match=r"vocabulary\.npz: .*damaged or cut short"):
        concept_pool.cached_vocabulary(path, *clip, NAMES, "plain")


LONG = "word " * 76


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", LONG + "red", LONG + "blue"), "red' and .*blue' are equal in their first 77 tok"),
        (("25", "cat", "2 5"), "names '25' and '2 5' have the same tokens"),
        (("hot-dog", "hot - dog"), "names 'hot-dog' and 'hot - dog' have the same tokens"),
        (("Cat", "dog", "cat"), "names 'Cat' and 'cat' have the same tokens"),
        (("c", "c++"), r"names 'c' and 'c\+\+' have the same tokens"),
    ],
)
def test_two_names_never_share_an_embedding(clip, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        concept_pool.embed_names(*clip, names, "clip")
    # Also if one of them is in the cache, and not embedded again.
    path = tmp_path / "vocabulary.npz"
    encoder = describe_encoder(clip[0].config, clip[1]["params"])
    templates = tuple(concept_pool.PLAIN_TEMPLATES)
    Vocabulary(names[:-1], np.eye(len(names) - 1, 12), templates, encoder).save(path)
    with pytest.raises(UserError, match=message):
        concept_pool.cached_vocabulary(path, *clip, names, "plain")


def test_a_name_that_is_cut_is_named(caplog):
    text = PRESETS["RN50"].text
    # 74 words, the full stop of the shortest prompt, start and end.
    concept_pool.require_distinct(("cat", "word " * 74), "clip", text, tokenizer_named("clip"))
    assert "'word word" in caplog.text and "in 80 of 81 prompts" in caplog.text
    assert "1 of 2 names are longer than the 77 tokens" in caplog.text
    caplog.clear()
    concept_pool.require_distinct(
        ("cat", LONG, "word " * 60), "clip", text, tokenizer_named("clip")
    )
    assert "in 81 of 81 prompts" in caplog.text and "1 of 3 names" in caplog.text
    caplog.clear()
    concept_pool.require_distinct(("cat", "word " * 60), "clip", text, tokenizer_named("clip"))
    assert not caplog.text
