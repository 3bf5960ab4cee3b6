"""Train the small vocabularies of SigLIP's tests, and write the ids that transformers gives.

    python make_siglip_vocabularies.py

needs transformers 5.24, tokenizers and sentencepiece; it reads no network. It writes
``siglip_spiece.model``, ``siglip_tokenizer.json`` (the same vocabulary, as transformers converts
T5's), ``siglip2_tokenizer.json`` and ``siglip_tokens.json``. SentencePiece's and the BPE trainer's
results may differ between versions of these libraries; the ids then differ with them.
"""

import contextlib
import io
import json
import string
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import Siglip2Tokenizer, SiglipTokenizer
from transformers.convert_slow_tokenizer import T5Converter

HERE = Path(__file__).parent
LENGTH = 16
# A few of the rules of T5's vocabulary, "nmt_nfkc", whose table alone has 200 kB.
RULES = {
    "ﬁ": "fi", "①": "1", "½": "1⁄2", "e\u0301": "é", "a\u0308": "ä", "\t": " ", "\u3000": " ",
    "\u200b": " ", "\x1f": "", "▁": " ", "\x85": " ", "\u00a0": " ", "…": "...",
}  # fmt: skip
WORDS = (
    "a photo of the cat dog zebra remote control traffic light fire hydrant red blue round square "
    "large small person with an umbrella next to two parked cars in front of old houses near water "
    "äpfel über größe niño señal café straße don't it's 12 345 "
).split()
TEXTS = [
    "a photo of a cat", "A PHOTO of a Cat.", "", " ", "!!!", "  two   cars \t\r\n near\x0bwater ",
    "fire_hydrant", "don't", "it's 12,345!", "a (red) [round] {square} <light>", 
    "café straße Größe",    "İstanbul ΣΑΣ ﬁ ① ½", "日本 の 猫",
    "👩‍👩‍👧 dog", "a\x00b", "\x1f\x85\u3000x", "a\u200bb \u00a0c",
    "&amp; &lt;dog&gt;", "\\ / | ` ~ ^ @ # $ % & * - + =", "photo " * 30, "zebrazebrazebra" * 4,
    "umbrella,umbrella;umbrella:umbrella", "cafÃ©", "e\u0301", "١٢", "…—“dog”", "▁▁ a ▁b",
]  # fmt: skip


def sentences() -> list[str]:
    """Return sentences of all words, in an order without a random generator."""
    shifts = (1, 3, 7, 11, 19)
    rows = [" ".join(WORDS[k * s % len(WORDS)] for k in range(9 * s)) for s in shifts]
    return [*rows, *WORDS, " ".join(string.ascii_lowercase), " ".join(string.digits)] * 3


def main() -> None:
    model = io.BytesIO()
    rules = "\n".join(
        "\t".join(" ".join(f"{ord(character):X}" for character in part) for part in row)
        for row in RULES.items()
    )
    # The model holds the path of the rules.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("rules.tsv").write_text(rules + "\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences()), model_writer=model, vocab_size=110,
            model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
            normalization_rule_tsv="rules.tsv",
        )  # fmt: skip
    path = HERE / "siglip_spiece.model"
    path.write_bytes(model.getvalue())
    slow = SiglipTokenizer(str(path))
    # T5's conversion takes the slow tokenizer's number of extra ids, which SigLIP has not.
    slow._extra_ids = 0
    slow.vocab_file = str(path)
    fast = T5Converter(slow).converted()
    fast.save(str(HERE / "siglip_tokenizer.json"), pretty=False)

    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        + [f"<0x{byte:02X}>" for byte in range(256)],
    )  # fmt: skip
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.train_from_iterator(sentences(), trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    gemma = Siglip2Tokenizer(vocab=trained["vocab"], merges=merges, padding_side="right")
    gemma.backend_tokenizer.save(str(HERE / "siglip2_tokenizer.json"), pretty=False)

    def ids(tokenizer) -> list[list[int]]:
        how = dict(padding="max_length", truncation=True, max_length=LENGTH)
        return tokenizer(TEXTS, **how)["input_ids"]

    # Its tokenizer_config.json has the end token, which the class does not add by itself.
    plain = [gemma(text, add_special_tokens=False)["input_ids"][: LENGTH - 1] for text in TEXTS]
    siglip2 = [row + [1] + [0] * (LENGTH - 1 - len(row)) for row in plain]
    content = {"length": LENGTH, "texts": TEXTS, "siglip": ids(slow), "siglip2": siglip2}
    text = json.dumps(content, ensure_ascii=True, indent=None)
    (HERE / "siglip_tokens.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
