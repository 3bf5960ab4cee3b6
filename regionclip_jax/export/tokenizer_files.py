"""Tokenizer files of a model for transformers, and for open_clip's models of SigLIP.

CLIP's are made from the merges of this package. SigLIP's are its publisher's, byte for byte.
"""

import json
from pathlib import Path

from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.text.byte_pairs import vocabulary_and_merges
from regionclip_jax.text.clip_tokenizer import END_TOKEN, START_TOKEN
from regionclip_jax.text.siglip_tokenizer import JSON_NAME, RULES, SENTENCEPIECE_NAME, read_content

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CONFIG_NAME = "tokenizer_config.json"


def tokenizer_files(directory: Path, config: CLIPConfig) -> dict[str, bytes]:
    """Return the content of the files by name.

    Raises:
        CheckpointMismatch: the model directory lacks the vocabulary that its tokenizer reads.
        UserError: the vocabulary is not readable.
    """
    source = tokenizer_of(directory, config.text)
    length = config.text.context_length
    if source.file is None:
        return _clip_files(length)
    content = read_content(source.file)
    is_json = content.lstrip().startswith(b"{")
    rules = RULES[source.name]
    padding = rules.end if rules.pad_id == rules.end_id else "<pad>"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_json else "SiglipTokenizer",
        "model_max_length": length,
        "eos_token": rules.end,
        "pad_token": padding,
    }
    return {JSON_NAME if is_json else SENTENCEPIECE_NAME: content, _CONFIG_NAME: _json(settings)}


def _clip_files(length: int) -> dict[str, bytes]:
    vocabulary, merges = vocabulary_and_merges()
    vocabulary |= {_START: START_TOKEN, _END: END_TOKEN}
    lines = ["#version: 0.2", *map(" ".join, merges)]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        _CONFIG_NAME: _json(settings),
    }


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
