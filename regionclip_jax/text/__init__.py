"""Words: CLIP's tokens, prompts, and the names of categories."""
