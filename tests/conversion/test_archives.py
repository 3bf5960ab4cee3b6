import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.archives import BARE_TENSOR, read_tensors

LEGACY_HEADER = [
    0x1950A86A20F9469CFC6C,
    1001,
    {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
]
BASE = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tensor_pickle(
    storage: bytes = global_("torch", "FloatStorage"),
    numel: int = 4,
    offset: int = 0,
    shape: tuple = (2, 2),
    strides: tuple = (2, 1),
) -> bytes:
    """Return torch's opcodes that rebuild one tensor of storage '0'."""

    def numbers(values):
        return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"

    pid = b"(X\x07\x00\x00\x00storage" + storage + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    pid += f"I{numel}\ntQ".encode()
    rebuild = global_("torch._utils", "_rebuild_tensor_v2")
    hooks = global_("collections", "OrderedDict") + b")R"
    return (
        rebuild + b"(" + pid + f"I{offset}\n".encode() + numbers(shape) + numbers(strides)
        + b"I00\n" + hooks + b"tR"
    )  # fmt: skip


def write_zip(path, program: bytes, *, torchscript=False, byteorder="little", data=b"\0" * 16):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/data/0", data)
        if torchscript:
            archive.writestr("archive/constants.pkl", b"\x80\x02).")
    return path


class Command:
    """Object with a pickle that runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["pico_clip.pth", "pico_clip_legacy.pth"])
def test_torch_files_are_read_bit_for_bit(golden, make_state_dict, name):
    expected = make_state_dict("pico_clip")
    tensors = read_tensors(golden / name)
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value)


@pytest.mark.parity
def test_torchscript_tensors_are_named_by_attribute_path(golden, make_state_dict):
    expected = make_state_dict("pico_clip")
    tensors = read_tensors(golden / "pico_clip_torchscript_fp16.pt")
    extra = {"input_resolution": 64, "context_length": 77, "vocab_size": 64}
    assert tensors.keys() == expected.keys() | extra.keys()
    assert all(int(tensors[name]) == value for name, value in extra.items())
    half = [key for key, value in tensors.items() if value.dtype == np.float16]
    assert "visual.conv1.weight" in half and "visual.bn1.weight" not in half
    for key, value in expected.items():
        np.testing.assert_array_equal(tensors[key], value.astype(tensors[key].dtype))


def test_strides_offsets_shared_storages_and_dtypes_are_read(golden):
    tensors = read_tensors(golden / "torch_layouts.pth")
    np.testing.assert_array_equal(tensors["transposed"], BASE.transpose(2, 1, 0))
    np.testing.assert_array_equal(tensors["slice"], BASE[1:, ::2, 1:4])
    np.testing.assert_array_equal(tensors["shared"], BASE)
    np.testing.assert_array_equal(tensors["expanded"], np.ones(3))
    np.testing.assert_array_equal(tensors["parameter"], BASE[0])
    assert tensors["empty"].shape == (0, 4) and tensors["scalar"] == 2.5
    dtypes = {"half": np.float16, "double": np.float64, "bfloat16": ml_dtypes.bfloat16}
    for name, dtype in dtypes.items():
        assert tensors[name].dtype == dtype
        np.testing.assert_array_equal(tensors[name].astype(np.float32), BASE[0])
    assert tensors["int64"].dtype == np.int64 and tensors["int8"].dtype == np.int8
    assert tensors["bool"].tolist() == [True, False]


def test_safetensors_is_read_with_every_dtype(golden):
    tensors = read_tensors(golden / "layouts.safetensors")
    np.testing.assert_array_equal(tensors["float32"], BASE)
    for name, dtype in {"half": np.float16, "bfloat16": ml_dtypes.bfloat16}.items():
        assert tensors[name].dtype == dtype
        np.testing.assert_array_equal(tensors[name].astype(np.float32), BASE[0])
    assert tensors["int64"].tolist() == [0, 1, 2, 3, 4] and tensors["scalar"].shape == ()
    assert tensors["empty"].shape == (0, 4) and tensors["bool"].dtype == np.bool_


def test_a_bare_tensor_has_the_empty_name(tmp_path):
    data = np.arange(4, dtype=np.float32)
    path = write_zip(tmp_path / "a.pth", tensor_pickle() + b".", data=data.tobytes())
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors[BARE_TENSOR], data.reshape(2, 2))


@pytest.mark.parametrize("container", ["zip", "torchscript", "legacy"])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path, container):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    program = pickle.dumps({"model": Command(f"touch {trace}")}, protocol=2)
    if container == "legacy":
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in LEGACY_HEADER) + program)
    else:
        write_zip(path, program, torchscript=container == "torchscript")
    with pytest.raises(CheckpointMismatch, match=r"evil\.pth: refused.*posix\.system"):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "Counter"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch.jit._pickle", "build_intlist"),
        ("__torch__.torch.nn", "Module"),
        ("argparse", "Namespace"),
    ],
)
def test_objects_other_than_tensors_are_refused_by_name(tmp_path, module, name):
    program = b"\x80\x04" + pickle.dumps(module, 4)[2:-1] + pickle.dumps(name, 4)[2:-1] + b"\x93."
    with pytest.raises(CheckpointMismatch, match=f"{module}.{name}"):
        read_tensors(write_zip(tmp_path / "a.pth", program))


@pytest.mark.parametrize(
    "program",
    [
        tensor_pickle(shape=(3, 2)),
        tensor_pickle(offset=1),
        tensor_pickle(offset=-1),
        tensor_pickle(strides=(-2, 1)),
        tensor_pickle(strides=(1,)),
        tensor_pickle(numel=400),
        tensor_pickle(storage=global_("torch", "_utils")),
        # The pickle overwrites the checked fields of this tensor afterwards.
        tensor_pickle() + b"}X\x06\x00\x00\x00offsetI-9\nsb",
        tensor_pickle() + b"N}X\x06\x00\x00\x00offsetI-9\ns\x86b",
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, program):
    with pytest.raises(CheckpointMismatch, match=r"a\.pth"):
        read_tensors(write_zip(tmp_path / "a.pth", program + b"."))


@pytest.mark.parametrize(
    "program",
    [
        # The first two state a memo of four billion entries and an array of 2**63 - 1 bytes.
        b"Nr\xff\xff\xff\xff.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"}" * 3 + b"X\x01\x00\x00\x00as" * 2 + b".",
    ],
)
def test_sizes_given_in_a_pickle_are_not_allocated(tmp_path, program):
    with pytest.raises(CheckpointMismatch, match=r"a\.pth"):
        read_tensors(write_zip(tmp_path / "a.pth", program))


def test_big_endian_files_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", tensor_pickle() + b".", byteorder="big")
    with pytest.raises(CheckpointMismatch, match="little-endian"):
        read_tensors(path)
    header = [*LEGACY_HEADER[:2], {**LEGACY_HEADER[2], "little_endian": False}, {}]
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in header))
    with pytest.raises(CheckpointMismatch, match="little-endian"):
        read_tensors(path)


@pytest.mark.property
@pytest.mark.parametrize(
    "name",
    ["torch_layouts.pth", "pico_clip_legacy.pth", "pico_clip_torchscript_fp16.pt",
     "layouts.safetensors"],
)  # fmt: skip
@settings(max_examples=25, deadline=None, derandomize=True)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_by_name(tmp_path_factory, golden, name, kept):
    content = (golden / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointMismatch, match=name):
        read_tensors(path)


@pytest.mark.property
@pytest.mark.parametrize("name", ["torch_layouts.pth", "layouts.safetensors", "small_legacy.pth"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_without_a_crash(tmp_path_factory, golden, name, data):
    content = bytearray((golden / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    try:
        read_tensors(path)
    except CheckpointMismatch as error:
        assert name in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not a model</html>", b"\x80\x01}.", b"PK\x03\x04"]
)
def test_other_files_are_refused_with_a_remedy(tmp_path, content):
    path = tmp_path / "RN50.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=r"RN50\.pt.*download"):
        read_tensors(path)


def test_a_zip_without_a_pickle_is_refused(tmp_path):
    path = tmp_path / "outer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("models/RN50.pt", b"")
    with pytest.raises(CheckpointMismatch, match="outer zip"):
        read_tensors(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]},
        {"dtype": "F32", "shape": [200], "data_offsets": [0, 800]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]},
        {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        {"shape": [2]},
        7,
    ],
)
def test_an_inconsistent_safetensors_header_is_refused(tmp_path, entry):
    text = json.dumps({"weight": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(CheckpointMismatch, match=r"a\.safetensors.*'weight'"):
        read_tensors(path)
