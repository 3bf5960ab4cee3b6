"""Run one part: ``python -m accelerator.run_part NAME --output DIR --seconds S [--small]``."""

import argparse
import importlib
from pathlib import Path

from accelerator.recorder import Recorder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    recorder = Recorder(args.output / f"{args.name}.json", args.seconds, args.small)
    importlib.import_module(f"accelerator.{args.name}").run(recorder)


if __name__ == "__main__":
    main()
