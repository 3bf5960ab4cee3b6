import json
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints import to_huggingface
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.conversion.choices import Choice
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.convert_vocabulary import convert_vocabulary
from regionclip_jax.models.clip import CLIP, logit_scale_and_bias
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing

GOLDEN = Path(__file__).parents[1] / "golden"

# Relative to the largest magnitude, for float32 on a CPU with other summation orders than torch.
TOLERANCE = 1e-4
# Bookkeeping beside the weights in OpenAI's archives.
OPENAI_NUMBERS = {
    name: np.array(number)
    for name, number in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408))
}
# Sizes of the golden vit_tiny with other numbers than OpenAI's.
TINY_VIT = CLIPConfig(
    ViTConfig(16, 3, 128, heads=8, activation="gelu"),
    TextConfig(49408, 77, 64, heads=4, layers=2, activation="gelu"),
    Preprocessing(64, mean=(0.5, 0.4, 0.3)),
    embed_dim=64,
)


def encode(directory, pixels, tokens):
    variables, card = load_model(directory)
    with jax.default_matmul_precision("highest"):
        encode_both = jax.jit(CLIP(card.architecture).apply)
        return encode_both(variables, pixels.transpose(0, 2, 3, 1), tokens)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def as_regionclip(tensors, tower="backbone", text="lang_encoder."):
    """Return a CLIP model by RegionCLIP's names, without batch counters and logit scale."""
    result = {}
    for key, value in tensors.items():
        if key.startswith("visual.") and "num_batches_tracked" not in key:
            result[f"{tower}.{key.removeprefix('visual.')}"] = value
        elif text is not None and not key.startswith("visual.") and key != "logit_scale":
            result[text + key] = value
    return result


@pytest.mark.parity
@pytest.mark.parametrize("arch", ["nano_clip", "vit_tiny"])
def test_converted_towers_give_the_results_of_the_reference(
    tmp_path, golden, clip_tensors, write_safetensors, arch
):
    expected = np.load(golden / ("nano_clip_io.npz" if arch == "nano_clip" else "vit_tiny.npz"))
    pixels = expected["image" if arch == "nano_clip" else "input"]
    tensors = clip_tensors(arch)
    if arch == "vit_tiny":
        tensors |= OPENAI_NUMBERS
    conversion = convert_checkpoint(write_safetensors(tensors), tmp_path / "model")
    assert conversion.unused == () and conversion.card.preset is None
    counted = {name for name in conversion.bookkeeping if "num_batches_tracked" not in name}
    assert counted == (OPENAI_NUMBERS.keys() if arch == "vit_tiny" else set())
    images, texts = encode(tmp_path / "model", pixels, expected["tokens"])
    variables, _ = load_model(tmp_path / "model")
    logit_scale, bias = logit_scale_and_bias(variables["params"])
    assert bias is None
    assert_close(images, expected["image_features"])
    assert_close(texts, expected["text_features"])
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    assert_close(np.exp(logit_scale) * images @ texts.T, expected["logits_per_image"])


@pytest.mark.parity
def test_weights_are_converted_bit_for_bit(tmp_path, pico_file, clip_tensors):
    source = clip_tensors("pico_clip")
    convert_checkpoint(pico_file(), tmp_path)
    variables, card = load_model(tmp_path)
    params, stats = variables["params"], variables["batch_stats"]
    block = params["visual"]["layer2"]["block0"]
    same = np.testing.assert_array_equal
    name = "visual.layer2.0"
    same(block["conv2"]["kernel"], source[f"{name}.conv2.weight"].transpose(2, 3, 1, 0))
    same(block["downsample_norm"]["scale"], source[f"{name}.downsample.1.weight"])
    norm = stats["visual"]["layer2"]["block0"]["norm3"]
    same(norm["var"], source[f"{name}.bn3.running_var"])
    same(norm["mean"], source[f"{name}.bn3.running_mean"])
    attention = params["text"]["blocks"]["block0"]["attention"]
    packed = source["transformer.resblocks.0.attn.in_proj_weight"]
    same(attention["k_proj"]["kernel"], packed[16:32].T)
    same(params["text"]["projection"], source["text_projection"])
    pool = params["visual"]["attention_pool"]
    same(pool["c_proj"]["kernel"], source["visual.attnpool.c_proj.weight"].T)
    assert card.source["file"] == "pico_clip.pth"


def test_torchscript_in_half_precision_is_cast_up_exactly(tmp_path, pico_file, clip_tensors):
    conversion = convert_checkpoint(pico_file("pico_clip_torchscript_fp16.pt"), tmp_path)
    variables, _ = load_model(tmp_path)
    source = clip_tensors("pico_clip")
    kernel = variables["params"]["visual"]["stem"]["conv1"]["kernel"]
    half = source["visual.conv1.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(kernel, half.transpose(2, 3, 1, 0))
    assert kernel.dtype == np.float32
    assert {"input_resolution", "context_length", "vocab_size"} <= set(conversion.bookkeeping)
    assert conversion.unused == ()


def test_either_tower_of_a_regionclip_file_is_converted(tmp_path, clip_tensors, write_safetensors):
    tensors = clip_tensors("pico_clip")
    bias = "conv1.weight"
    both = as_regionclip(tensors) | as_regionclip(tensors, "teacher_backbone", None)
    both[f"teacher_backbone.{bias}"] = both[f"backbone.{bias}"] + 1
    both["offline_backbone.stem.conv1.weight"] = tensors["visual.conv1.weight"]
    both["pixel_mean"] = np.zeros(3, np.float32)
    source = write_safetensors(both)
    student = convert_checkpoint(source, tmp_path / "student")
    teacher = convert_checkpoint(source, tmp_path / "teacher", tower="teacher")
    kernels = [
        load_model(tmp_path / tower)[0]["params"]["visual"]["stem"]["conv1"]["kernel"]
        for tower in ("student", "teacher")
    ]
    np.testing.assert_array_equal(kernels[0] + 1, kernels[1])
    assert any(name.startswith("teacher_backbone.") for name in student.unused)
    assert any(name.startswith("backbone.") for name in teacher.unused)
    assert "offline_backbone.stem.conv1.weight" in student.unused
    assert student.bookkeeping == ("pixel_mean",)
    variables, _ = load_model(tmp_path / "student")
    assert variables["params"]["logit_scale"] == np.float32(np.log(100))
    assert any("logit_scale" in note for note in student.notes)
    assert "teacher_backbone.* (" in student.summary()


def test_a_regionclip_detector_takes_its_text_tower_from_another_file(
    tmp_path, pico_file, clip_tensors, write_safetensors
):
    tensors = clip_tensors("pico_clip")
    source = write_safetensors(as_regionclip(tensors, text=None))
    with pytest.raises(CheckpointMismatch, match="--text-from"):
        convert_checkpoint(source, tmp_path / "model")
    convert_checkpoint(source, tmp_path / "model", text_from=pico_file())
    convert_checkpoint(pico_file(), tmp_path / "whole")
    one, _ = load_model(tmp_path / "model")
    other, _ = load_model(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_missing_tower_is_refused(tmp_path, clip_tensors, write_safetensors):
    tensors = clip_tensors("pico_clip")
    plain = write_safetensors(tensors, "plain.safetensors")
    with pytest.raises(CheckpointMismatch, match="leave out --tower teacher"):
        convert_checkpoint(plain, tmp_path / "model", tower="teacher")
    teacher = write_safetensors(as_regionclip(tensors, "teacher_backbone"), "teacher.safetensors")
    with pytest.raises(CheckpointMismatch, match="convert it with --tower teacher"):
        convert_checkpoint(teacher, tmp_path / "model")


def test_a_wrong_shape_is_refused_with_key_and_both_shapes(
    tmp_path, clip_tensors, write_safetensors
):
    tensors = clip_tensors("pico_clip")
    tensors["visual.layer3.0.conv2.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    with pytest.raises(CheckpointMismatch) as error:
        convert_checkpoint(write_safetensors(tensors), tmp_path / "model")
    message = "visual.layer3.0.conv2.weight: expected shape (8, 8, 3, 3), found (8, 8, 1, 1)"
    assert message in str(error.value)
    assert not (tmp_path / "model").exists()


def test_missing_and_whole_number_tensors_are_refused_by_name(
    tmp_path, clip_tensors, write_safetensors
):
    tensors = clip_tensors("pico_clip")
    del tensors["visual.layer1.0.bn2.running_var"]
    tensors["ln_final.bias"] = np.zeros(16, np.int64)
    with pytest.raises(CheckpointMismatch) as error:
        convert_checkpoint(write_safetensors(tensors), tmp_path / "model")
    assert "visual.layer1.0.bn2.running_var: missing, expected shape (2,)" in str(error.value)
    assert "ln_final.bias: expected floating point, found int64" in str(error.value)


def test_unknown_tensors_are_listed(tmp_path, clip_tensors, write_safetensors):
    tensors = clip_tensors("pico_clip") | {"extra.weight": np.zeros(2, np.float32)}
    conversion = convert_checkpoint(write_safetensors(tensors), tmp_path / "model")
    assert conversion.unused == ("extra.weight",)
    assert "unused: extra.weight" in conversion.summary()


@pytest.mark.parametrize(
    "name", ["visual.conv1.bias", "transformer.resblocks.0.ls_1.gamma", "visual.attn_pool.query"]
)
def test_a_tower_with_further_tensors_is_refused(tmp_path, clip_tensors, write_safetensors, name):
    tensors = clip_tensors("pico_clip") | {name: np.zeros(2, np.float32)}
    with pytest.raises(CheckpointMismatch, match=f"1 others such as .*{name}"):
        convert_checkpoint(write_safetensors(tensors), tmp_path / "model")


def test_a_file_without_a_clip_model_is_refused(tmp_path, write_safetensors):
    source = write_safetensors({"fc.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointMismatch, match=r"model\.pth.*image tower.*fc\.weight"):
        convert_checkpoint(source, tmp_path / "model")


def test_a_localizer_is_not_converted_as_a_student(tmp_path, write_safetensors):
    names = ["backbone.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"]
    source = write_safetensors({name: np.zeros((1, 3, 7, 7), np.float32) for name in names})
    with pytest.raises(CheckpointMismatch, match="found a localizer"):
        convert_checkpoint(source, tmp_path / "model")


def test_text_of_another_width_is_refused_with_both_shapes(
    tmp_path, clip_tensors, write_safetensors
):
    tensors = clip_tensors("pico_clip")
    tensors["text_projection"] = np.zeros((16, 9), np.float32)
    with pytest.raises(CheckpointMismatch, match=r"expected shape \(16, 8\), found \(16, 9\)"):
        convert_checkpoint(write_safetensors(tensors), tmp_path / "model")


def test_hugging_face_numbers_are_those_of_its_configuration(
    tmp_path, clip_tensors, write_safetensors
):
    source = write_safetensors(to_huggingface(clip_tensors("vit_tiny")), "model.safetensors")
    stated = {
        "model_type": "clip",
        "projection_dim": 64,
        "vision_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 8, "image_size": 64, "patch_size": 16,
            "hidden_act": "gelu", "layer_norm_eps": 1e-3,
        },
        "text_config": {
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "hidden_act": "gelu_pytorch_tanh",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(stated))
    preprocessor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    conversion = convert_checkpoint(source, tmp_path / "model")
    config = load_card(tmp_path / "model").architecture
    image, text = config.image, config.text
    assert (image.activation, image.eps, image.heads) == ("gelu", 1e-3, 8)
    assert (text.activation, text.eps, text.heads) == ("gelu_tanh", 1e-5, 4)
    pixels = Preprocessing(64, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bicubic_truncate")
    assert config.preprocessing == pixels
    assert conversion.card.architecture == config and "config.json" in conversion.notes[0]


def test_a_bare_vit_needs_a_choice(tmp_path, clip_tensors, write_safetensors, monkeypatch):
    """The preset's numbers are in the card, and so is a chosen activation."""
    tensors = clip_tensors("vit_tiny")
    source = write_safetensors(tensors, "model.pt")
    with pytest.raises(CheckpointMismatch, match=r"model\.pt: .*activation.*no preset has"):
        convert_checkpoint(source, tmp_path / "model")
    monkeypatch.setitem(PRESETS, "a_tiny_vit", TINY_VIT)
    with pytest.raises(CheckpointMismatch, match=r"choose --preset of a_tiny_vit \(gelu\)"):
        convert_checkpoint(source, tmp_path / "model")
    conversion = convert_checkpoint(source, tmp_path / "model", choice=Choice("a_tiny_vit"))
    assert conversion.card.preset == "a_tiny_vit" and "--preset a_tiny_vit" in conversion.notes[0]
    choice = Choice(activation="gelu_tanh")
    convert_checkpoint(source, tmp_path / "model", choice=choice)
    config = load_card(tmp_path / "model").architecture
    assert (config.image.activation, config.text.activation) == ("gelu_tanh", "gelu_tanh")
    assert (config.image.heads, config.text.heads) == (8, 4)
    assert config.preprocessing == TINY_VIT.preprocessing


def test_regions_at_unit_length_are_chosen_for_a_vit_and_refused_for_a_resnet(
    tmp_path, clip_tensors, write_safetensors, pico_file
):
    vit = write_safetensors(clip_tensors("vit_tiny") | OPENAI_NUMBERS, "model.pt")
    assert not convert_checkpoint(vit, tmp_path / "model").card.architecture.normalize_map
    convert_checkpoint(vit, tmp_path / "model", normalize_map=True)
    assert load_card(tmp_path / "model").architecture.normalize_map
    with pytest.raises(CheckpointMismatch, match="normalize_map: expected false.*'resnet'"):
        convert_checkpoint(pico_file(), tmp_path / "other", normalize_map=True)
    assert not (tmp_path / "other").exists()


def test_a_choice_is_refused_where_nothing_is_open(tmp_path, clip_tensors, write_safetensors):
    source = write_safetensors(clip_tensors("vit_tiny") | OPENAI_NUMBERS, "model.pt")
    with pytest.raises(CheckpointMismatch, match="expected no --activation gelu, .*leave it out"):
        convert_checkpoint(source, tmp_path / "model", choice=Choice(activation="gelu"))


def test_a_choice_of_the_image_tower_does_not_affect_openais_text_tower(
    tmp_path, clip_tensors, write_safetensors, monkeypatch
):
    tensors = clip_tensors("vit_tiny")
    image = {name: value for name, value in tensors.items() if name.startswith("visual.")}
    source = write_safetensors(image, "image.pt")
    text_from = write_safetensors(tensors | OPENAI_NUMBERS, "openai.pt")
    monkeypatch.setitem(PRESETS, "a_tiny_vit", TINY_VIT)
    choice = Choice("a_tiny_vit")
    convert_checkpoint(source, tmp_path / "model", text_from=text_from, choice=choice)
    config = load_card(tmp_path / "model").architecture
    assert config.image == TINY_VIT.image
    assert (config.text.activation, config.text.heads) == ("quick_gelu", 1)


def test_a_vocabulary_of_another_tokenizer_is_refused(tmp_path, golden):
    with pytest.raises(CheckpointMismatch, match="49408 token ids .* found one of 64"):
        convert_checkpoint(golden / "pico_clip.pth", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transformer.resblocks.0.mlp.c_fc.weight": (60, 16)},
            r"mlp\.c_proj\.weight: expected shape \(16, 60\), found \(16, 64\)",
        ),
        ({"token_embedding.weight": (49408, 208)}, "208 channels, found 3"),
    ],
)  # fmt: skip
def test_blocks_of_another_shape_are_refused(
    tmp_path, clip_tensors, write_safetensors, changes, message
):
    tensors = clip_tensors("pico_clip")
    tensors |= {name: np.zeros(shape, np.float32) for name, shape in changes.items()}
    if "token_embedding.weight" in changes:
        tensors["transformer.resblocks.0.mlp.c_fc.weight"] = np.zeros((832, 208), np.float32)
    with pytest.raises(CheckpointMismatch, match=message):
        convert_checkpoint(write_safetensors(tensors), tmp_path / "model")


def test_a_logit_bias_is_converted(tmp_path, clip_tensors, write_safetensors):
    tensors = clip_tensors("pico_clip") | {"logit_bias": np.array(-7, np.float32)}
    assert convert_checkpoint(write_safetensors(tensors), tmp_path / "model").unused == ()
    variables, card = load_model(tmp_path / "model")
    assert card.architecture.logit_bias and variables["params"]["logit_bias"] == -7


def test_bare_embeddings_are_converted_to_the_vocabulary_of_a_model(
    tmp_path, pico_file, write_safetensors
):
    convert_checkpoint(pico_file(), tmp_path / "model")
    embeddings = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    source = write_safetensors({"": embeddings}, "emb.safetensors")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nfire hydrant\n")
    convert_vocabulary(source, names, tmp_path / "model")
    vocabulary = Vocabulary.load(tmp_path / "model" / "vocabulary.npz")
    assert vocabulary.names == ("cat", "dog", "fire hydrant")
    np.testing.assert_array_equal(vocabulary.embeddings, embeddings)
    assert vocabulary.encoder["architecture"]["embed_dim"] == 8
    assert vocabulary.encoder["source"]["file"] == "emb.safetensors"
    assert load_card(tmp_path / "model").architecture.embed_dim == 8


def test_embeddings_that_fit_neither_model_nor_names_are_refused(
    tmp_path, golden, pico_file, write_safetensors
):
    convert_checkpoint(pico_file(), tmp_path / "model")
    source = write_safetensors({"": np.ones((2, 16), np.float32)}, "emb.safetensors")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    with pytest.raises(CheckpointMismatch, match="width D = 8.*found 16"):
        convert_vocabulary(source, names, tmp_path / "model")
    convert_vocabulary(source, names, tmp_path / "alone")
    assert Vocabulary.load(tmp_path / "alone" / "vocabulary.npz").encoder["architecture"] is None
    names.write_text("cat\n")
    with pytest.raises(CheckpointMismatch, match="found 1 names"):
        convert_vocabulary(source, names, tmp_path / "alone")
    with pytest.raises(CheckpointMismatch, match="--vocabulary"):
        convert_checkpoint(source, tmp_path / "model")
    with pytest.raises(CheckpointMismatch, match="--source"):
        convert_vocabulary(golden / "pico_clip.pth", names, tmp_path / "alone")
