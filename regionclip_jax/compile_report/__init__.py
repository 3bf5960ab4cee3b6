"""Compile a recipe's step for absent TPUs and GPUs, and report its costs.

``report`` compiles and summarizes; ``absent_devices`` describes topologies to the compilers;
``program_text`` parses a compiled program, ``program_traffic`` counts the bytes it moves and
``program_costs`` the FLOPs of a traced one; ``chips`` holds the vendors' specifications.
"""
