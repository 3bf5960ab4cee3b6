"""Text: CLIP's tokens, prompts, and the names of categories and concepts."""
