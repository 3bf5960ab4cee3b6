#!/usr/bin/env python3
"""Count in how many files each settings key is spelled, parameters of functions, and lines.

    python scripts/count_key_files.py          # exit status 1 above a limit
    python scripts/count_key_files.py --list   # all keys, most files first

Settings objects are passed on as they are, so a key needs few files: its definition and its use. A
key in many files is copied somewhere. The count includes the package and the scripts, not recipes,
docs/ and tests/, and not data/sources/, where every source has the same arguments.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORTEST_KEY = 9  # letters; shorter keys are also common words
MOST_FILES = 5
MOST_PARAMETERS = 8

# Keys that also name an object, an array or a job are not counted.
WORDS = frozenset(
    "annotations batch_size context_length detection evaluation localizer num_steps objectness "
    "optimizer proposals temperature templates threshold train_clip train_detector train_localizer "
    "vocabulary".split()
)
# Reason for more than MOST_FILES -> (limit, keys).
EXCEPTIONS = {
    "arguments of the public API and of commands, which name them for users": (
        16,
        "max_skipped_fraction min_skipped_records max_detections max_long_side nms_threshold "
        "num_proposals num_workers score_threshold short_side",
    ),
    "arguments of ops and models, which take numbers; benchmarks and exports call them": (
        13,
        "embed_from remat mask_size num_regions pre_nms_topk regions_per_chunk roi_align_impl",
    ),
    "read by every stage of loading, and by the shapes of compiled programs": (
        14,
        "canvas_sizes max_boxes num_threads resize_method short_sides",
    ),
    "read by every job that starts from a model": (9, "init_from"),
    "has another default in every job": (6, "frozen_patterns"),
    "also a number of the architecture, which models, presets and cards read": (
        10,
        "normalize_map",
    ),
}
KEY_LIMITS = {key: limit for limit, keys in EXCEPTIONS.values() for key in keys.split()}
# Function -> (limit, why more than MOST_PARAMETERS).
FUNCTIONS = {
    "detect": (13, "public API: every number has a name for users"),
    "prepare": (10, "one call, of the arguments of one command"),
}


def settings_keys(files: dict[Path, str]) -> set[str]:
    """Return the fields of the settings classes, of SHORTEST_KEY letters or more."""
    keys = set()
    for path, text in files.items():
        if path.parent.name == "settings":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    fields = (s.target for s in node.body if isinstance(s, ast.AnnAssign))
                    keys |= {field.id for field in fields if isinstance(field, ast.Name)}
    return {key for key in keys if len(key) >= SHORTEST_KEY and key not in WORDS}


def count_files(key: str, files: dict[Path, str]) -> int:
    return sum(bool(re.search(rf"\b{key}\b", text)) for text in files.values())


def parameter_counts(files: dict[Path, str]) -> dict[str, int]:
    """Return the longest parameter list of each function name."""
    counts: dict[str, int] = {}
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                number = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
                counts[node.name] = max(number, counts.get(node.name, 0))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show all keys")
    options = parser.parse_args()
    package = {path: path.read_text() for path in sorted((ROOT / "regionclip_jax").rglob("*.py"))}
    scripts = {path: path.read_text() for path in sorted((ROOT / "scripts").rglob("*.py"))}
    scripts.pop(Path(__file__).resolve(), None)
    sources = ROOT / "regionclip_jax" / "data" / "sources"
    # As configs/: recipes spell keys.
    del scripts[ROOT / "scripts" / "campaigns" / "recipes.py"]
    counted = {
        path: text for path, text in (package | scripts).items() if sources not in path.parents
    }
    keys = {key: count_files(key, counted) for key in settings_keys(package)}
    parameters = parameter_counts(package)
    problems = [
        f"{key} is spelled in {number} files, at most {limit}; pass the settings object on as it is"
        for key, number in keys.items()
        if number > (limit := KEY_LIMITS.get(key, MOST_FILES))
    ] + [
        f"{name} has {number} parameters, at most {limit}; group them in an object"
        for name, number in parameters.items()
        if number > (limit := FUNCTIONS.get(name, (MOST_PARAMETERS, ""))[0])
    ]
    ordered = sorted(keys.items(), key=lambda item: (-item[1], item[0]))
    for key, number in ordered if options.list else ordered[:5]:
        print(f"{number:3d} files  {key}")
    longest = max(parameters, key=parameters.__getitem__)
    lines = sum(text.count("\n") for text in package.values())
    print(f"median {ordered[len(ordered) // 2][1]} files of {len(keys)} keys")
    print(f"longest parameter list: {parameters[longest]}, {longest}")
    print(f"{lines} lines in {len(package)} files of the package")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
