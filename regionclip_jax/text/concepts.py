"""Concepts from captions: nouns and noun phrases, each with its count.

The paper takes its pool from captions "using off-the-shelf language parsers" and keeps frequent
concepts. Here HanTa's English tagger finds the nouns and simplemma makes plurals singular. Both are
in the extra ``concepts``, include their models and download nothing. Statistics of the captions
correct the list of nouns, without a list of words:

- "a couple of", "in front of", "a photo of", "a slice of": a noun that mostly stands before "of"
  when it stands alone names a quantity, a place, a part or the image, not an object. It is dropped.
- "sitting", "white": a word that is rarely a noun is an error of the tagger. It is dropped.
- "pants", "sunglasses", "fries": a noun that is rarely singular keeps its plural.

The tagger does not count numbers, pronouns and proper names as nouns.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal

from regionclip_jax.extras import require_extra
from regionclip_jax.files import replace_text
from regionclip_jax.text.names import match_names, tokenized_text

Phrases = Literal["nouns", "compounds", "adjectives"]

_TOKENS = re.compile(r"\w+(?:-\w+)*|['’]\w+|\S")
_LONGEST_WORD = 40  # the tagger's time grows with the third power of the letters of an unknown word
_LONGEST_PHRASE = 3
_CAPTIONS_PER_BATCH = 1000

_LARGEST_RELATIONAL_SHARE = 0.5
_SMALLEST_NOUN_SHARE = 0.1
_SMALLEST_SINGULAR_SHARE = 0.05
_FEWEST_MENTIONS = 20  # to say anything about the share of the singular


@dataclasses.dataclass
class ConceptCounts:
    """Counts from captions; the counts of two sets of captions add up to those of both.

    Concepts are keyed by their words with the last one singular, e.g. ``"tennis racket"``.
    """

    num_captions: int = 0
    captions: Counter = dataclasses.field(default_factory=Counter)
    """Captions that name the concept, however often."""
    spellings: Counter = dataclasses.field(default_factory=Counter)
    """Mentions of ``(concept, as it was written)``."""
    alone: Counter = dataclasses.field(default_factory=Counter)
    """Mentions that are not the end of a longer phrase."""
    before_of: Counter = dataclasses.field(default_factory=Counter)
    """Those of ``alone`` that "of" follows."""
    words: Counter = dataclasses.field(default_factory=Counter)
    """Occurrences of every word, as whatever part of speech."""
    nouns: Counter = dataclasses.field(default_factory=Counter)
    """Those of ``words`` that are nouns."""

    def add(self, other: "ConceptCounts") -> None:
        for field in dataclasses.fields(self):
            if field.name == "num_captions":
                self.num_captions += other.num_captions
            else:
                getattr(self, field.name).update(getattr(other, field.name))


def count_concepts(
    captions: Iterable[str],
    *,
    phrases: Phrases = "compounds",
    processes: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> ConceptCounts:
    """Count the concepts of captions. Neither their order nor ``processes`` changes the counts.

    Args:
        captions: read lazily, so they need not fit into memory.
        phrases: ``"nouns"`` counts the head of every noun phrase ("rack" of "wooden spice rack"),
            ``"compounds"`` also the nouns before it ("spice rack"), ``"adjectives"`` also the
            adjective before those ("wooden spice rack"). At most three words.
        processes: number of processes that tag captions; 1 means this process alone.
        progress: called with the number of captions done.

    Raises:
        MissingExtra: the extra ``concepts`` is not installed.
    """
    _tagger()  # a missing package is reported once, by this process
    count = functools.partial(_count_batch, phrases=phrases)
    counts = ConceptCounts()
    for part in _map(count, _batches(captions), processes):
        counts.add(part)
        progress(counts.num_captions)
    return counts


def choose_concepts(
    counts: ConceptCounts,
    min_count: int,
    *,
    stop: Collection[str] = (),
    additions: Collection[str] = (),
) -> list[tuple[str, int]]:
    """Return ``(name, captions that name it)``, most frequent first, ties in alphabetical order.

    Names are compared as the tokenizer reads them: "Cat" in ``stop`` excludes "cat".

    Args:
        counts: from ``count_concepts``.
        min_count: least number of captions that name a concept.
        stop: names to exclude.
        additions: names to include for any count, despite the rules at the top of this file.
    """
    spellings = collections.defaultdict(Counter)
    for (concept, spelling), mentions in counts.spellings.items():
        spellings[concept][spelling] += mentions
    named = Counter()
    kept = set()
    for concept, written in spellings.items():
        *modifiers, head = concept.split(" ")
        name = " ".join([*modifiers, _spell(head, spellings[head])])
        named[name] += counts.captions[concept]
        if not _is_relational(concept, counts) and _is_noun(written, counts):
            kept.add(name)
    added = set(match_names(tuple(additions), tuple(named)))
    stopped = {tokenized_text(name) for name in stop}
    pool = [
        (name, named[name])
        for name in kept | added
        if (named[name] >= min_count or name in added) and tokenized_text(name) not in stopped
    ]
    return sorted(pool, key=lambda entry: (-entry[1], entry[0]))


def write_concepts(path: str | os.PathLike, pool: Iterable[tuple[str, int]]) -> None:
    """Write ``name TAB count`` lines, the whole file or nothing."""
    replace_text(path, "".join(f"{name}\t{count}\n" for name, count in pool))


def _spell(noun: str, written: Counter) -> str:
    """The singular, or the most frequent spelling if captions rarely use the singular."""
    mentions = written.total()
    if mentions < _FEWEST_MENTIONS or written[noun] >= _SMALLEST_SINGULAR_SHARE * mentions:
        return noun
    return min(written, key=lambda spelling: (-written[spelling], spelling))


def _is_relational(concept: str, counts: ConceptCounts) -> bool:
    return counts.before_of[concept] > _LARGEST_RELATIONAL_SHARE * counts.alone[concept]


def _is_noun(spellings: Iterable[str], counts: ConceptCounts) -> bool:
    heads = {spelling.rpartition(" ")[2] for spelling in spellings}
    seen = sum(counts.words[head] for head in heads)
    return sum(counts.nouns[head] for head in heads) >= _SMALLEST_NOUN_SHARE * seen


def _batches(captions: Iterable[str]) -> Iterator[list[str]]:
    captions = iter(captions)
    while batch := list(itertools.islice(captions, _CAPTIONS_PER_BATCH)):
        yield batch


def _map(
    count: Callable[[list[str]], ConceptCounts], batches: Iterator[list[str]], processes: int
) -> Iterator[ConceptCounts]:
    if processes == 1:
        yield from map(count, batches)
        return
    # Spawned, not forked: the caller may have threads. Few batches are queued, to bound memory.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        running = {pool.submit(count, batch) for batch in itertools.islice(batches, 4 * processes)}
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for batch in itertools.islice(batches, len(done)):
                running.add(pool.submit(count, batch))
            for future in done:
                yield future.result()


def _count_batch(captions: list[str], phrases: Phrases) -> ConceptCounts:
    counts = ConceptCounts(num_captions=len(captions))
    for caption in captions:
        named = set()
        # Lower case throughout: the capitals of titles and first words must not turn nouns into
        # proper names.
        tokens = [
            token for token in _TOKENS.findall(caption.lower()) if len(token) <= _LONGEST_WORD
        ]
        tags = _tagger().tag_sent(tokens, taglevel=0)
        counts.words.update(token for token in tokens if _is_word(token))
        for start, end in _noun_runs(tokens, tags):
            counts.nouns.update(tokens[start:end])
            before_of = _of_follows(tokens, tags, end)
            first = start if phrases != "nouns" else end - 1
            before = start - 1
            if phrases == "adjectives" and start and tags[before].startswith("AJ"):
                first = before if _is_word(tokens[before]) else start
            for begin in range(max(first, end - _LONGEST_PHRASE), end):
                *modifiers, head = tokens[begin:end]
                singular = _singular(head) if tags[end - 1] == "NN2" else head
                concept = " ".join([*modifiers, singular])
                named.add(concept)
                counts.spellings[concept, " ".join([*modifiers, head])] += 1
                if begin <= start:
                    counts.alone[concept] += 1
                    counts.before_of[concept] += before_of
        counts.captions.update(named)
    return counts


def _noun_runs(tokens: list[str], tags: list[str]) -> Iterator[tuple[int, int]]:
    """Start and end of every stretch of common nouns."""
    is_noun = [
        tag.startswith("NN") and _is_word(token) for token, tag in zip(tokens, tags, strict=True)
    ]
    for noun, run in itertools.groupby(range(len(tokens)), is_noun.__getitem__):
        if noun:
            positions = list(run)
            yield positions[0], positions[-1] + 1


def _is_word(token: str) -> bool:
    return len(token) > 1 and token.replace("-", "").isalpha()


def _of_follows(tokens: list[str], tags: list[str], position: int) -> bool:
    """True if "of" comes next, possibly behind a particle ("close up of")."""
    if position < len(tokens) and tags[position] == "AVP":
        position += 1
    return position < len(tokens) and tokens[position] == "of"


@functools.cache
def _singular(plural: str) -> str:
    import simplemma

    known = simplemma.is_known(plural, "en")
    singular = simplemma.lemmatize(plural, "en").lower()
    return plural.removesuffix("s") if singular == plural and not known else singular


@functools.cache
def _tagger():
    require_extra("concepts", "finding nouns")
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")
