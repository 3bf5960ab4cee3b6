"""Prepare data: write, verify and measure directories of shards, and read caption files."""
