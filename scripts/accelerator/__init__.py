"""Parts of ``scripts/check_accelerator.sh``; each runs in its own process."""
