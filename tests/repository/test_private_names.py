"""Private names of other libraries: the package uses only one, with tests of its need."""

import ast
import io
import pickle
import resource
import sys
from pathlib import Path

import pytest

import regionclip_jax
from regionclip_jax.conversion.restricted_pickle import RestrictedUnpickler

PACKAGE = Path(regionclip_jax.__file__).parent
# Private names by file. The C unpickler would allocate any size given in a damaged file.
ALLOWED = {"conversion/restricted_pickle.py": {"pickle._Unpickler"}}


def private_names(tree: ast.AST) -> set[str]:
    """Return imported names and attributes of modules with a part that begins with "_"."""
    names, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            for alias in node.names:
                root = alias.name.partition(".")[0]
                modules[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in modules:
                names.add(".".join([modules[value.id], *reversed(parts)]))
    ours = "regionclip_jax."
    return {
        name
        for name in names
        if not name.startswith(ours)
        and any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    }


def test_no_other_private_name_is_used():
    names = {
        path.relative_to(PACKAGE).as_posix(): names - {"os._exit"}
        for path in PACKAGE.rglob("*.py")
        if (names := private_names(ast.parse(path.read_text()))) - {"os._exit"}
    }
    assert names == ALLOWED


def test_this_python_has_the_pure_python_unpickler():
    """Check that the class exists; otherwise write a reader with ``pickletools.genops``."""
    assert issubclass(RestrictedUnpickler, pickle._Unpickler)
    assert pickle._Unpickler is not pickle.Unpickler, "the C implementation took its place"
    assert pickle._Unpickler.__module__ == "pickle" and pickle._Unpickler.dispatch


@pytest.mark.parametrize("program", [b"B" + b"\xff" * 4, b"\x8e" + (1 << 40).to_bytes(8, "little"),
                                     b"Nr\xff\xff\xff\xff0"])  # fmt: skip
def test_sizes_given_in_a_pickle_are_not_allocated(tmp_path, program):
    """Load pickles that state 4 GB of bytes, a terabyte, and a memo index of four billion."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program = b"\x80\x04" + program
    unpickler = RestrictedUnpickler(tmp_path, io.BytesIO(program), len(program), encoding="utf-8")
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        unpickler.load()
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < 100 << 20
