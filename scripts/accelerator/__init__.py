"""The parts of ``scripts/check_accelerator.sh``: each runs in a process of its own."""
