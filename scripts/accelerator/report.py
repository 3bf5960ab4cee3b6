"""Write report.md: status of the parts, goals met or missed, and main numbers of each part."""

import dataclasses
from collections.abc import Iterator

from accelerator.goals import GOALS
from accelerator.parts import Part


@dataclasses.dataclass(frozen=True)
class Ended:
    """Ended part; status "done" (or "in part"), "cut off", "failed", "left out" or "not run"."""

    part: Part
    status: str
    seconds: float
    record: dict
    why: str = ""

    @property
    def said(self) -> str:
        return f" ({self.why})" if self.why else ""


def markdown(ended: list[Ended], *, budget: float, small: bool, parts: list[Part]) -> str:
    """Return the report on the parts that have ended."""
    records = {one.part.name: one.record for one in ended}
    facts = records.get("facts", {}).get("facts", {})
    lines = [f"# Accelerator check: {facts.get('device', 'unknown device')}", ""]
    if facts.get("backend") == "cpu":
        lines += ["**No accelerator: these are numbers of the CPU.**", ""]
    if small:
        lines += ["**Tiny sizes (--small): these numbers try the check, not the device.**", ""]
    lines += ["Weights and images are random: times and errors, never accuracy.", ""]
    lines += list(_facts(facts, budget))
    lines += ["", "## Parts", "", "| part | status | seconds | rows | |", "|---|---|---:|---:|---|"]
    for one in ended:
        rows = len(one.record.get("rows", []))
        why = one.why.replace("\n", "<br>").replace("|", "\\|")
        lines.append(f"| {one.part.name} | {one.status} | {one.seconds:.0f} | {rows} | {why} |")
    for part in parts[len(ended) :] if ended and ended[0].part in parts else []:
        lines.append(f"| {part.name} | not yet | | | |")
    lines += ["", "## Goals", "", "| goal | found | |", "|---|---|---|"]
    for goal in GOALS:
        found, met = goal.judge(records)
        verdict = {True: "met", False: "**missed**", None: "not measured"}[met]
        lines.append(f"| {goal.text} | {found} | {verdict} |")
    for one in ended:
        body = list(_SECTIONS[one.part.name](one.record)) if one.record else []
        notes = one.record.get("notes", [])
        body += ["", *(f"- {note}" for note in notes)] if notes else []
        not_run = one.record.get("not_run", [])
        if not_run:
            body += ["", f"Not run for want of time: {'; '.join(not_run)}."]
        if body:
            lines += ["", f"## {one.part.name}: {one.part.meaning}", "", *body]
    return "\n".join(lines) + "\n"


def _facts(facts: dict, budget: float) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    yield f"- commit {facts.get('commit')}, budget {budget:g} s"
    yield f"- backend {facts.get('backend')}, devices {facts.get('num_devices')}, {versions}"
    yield f"- {facts.get('processor')}, {facts.get('cpus_allowed')} CPU cores"
    if facts.get("nvidia_smi"):
        yield f"- nvidia-smi: {facts['nvidia_smi'].splitlines()[-1]}"


def _of_facts(record: dict) -> Iterator[str]:
    for row in record.get("rows", []):
        if "flops_per_s" in row:
            yield f"- {row['name']}: {row['flops_per_s'] / 1e12:.2f} TFLOP/s"
        else:
            yield f"- {row['name']}: {row['bytes_per_s'] / 1e9:.0f} GB/s read and written"


def _of_parity(record: dict) -> Iterator[str]:
    yield "| family | precision | compared | beyond | worst | error | tolerance | unmatched |"
    yield "|---|---|---:|---:|---|---:|---:|---:|"
    for row in record.get("rows", []):
        if "error" in row:
            yield f"| {row['name']} | {row['mode']} | failed: {_cell(row['error'])} | | | | | |"
            continue
        worst, unmatched = row["worst"], row["unmatched_detections"]
        share = "" if unmatched is None else f"{unmatched:.1%}"
        yield (
            f"| {row['name']} | {row['mode']} | {row['compared']} | {len(row['beyond'])} "
            f"| {_cell(worst['name'])} | {worst['error']:.2g} | {worst['tolerance']:.2g} "
            f"| {share} |"
        )


def _timings(record: dict) -> Iterator[str]:
    yield "| | ours, ms | compiling, s | rate | MFU | MiB | PyTorch, times ours |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for row in record.get("rows", []):
        of = row.get("size") or row.get("part_of") or row.get("dtype") or ""
        name = _cell(f"{row['name']}, {of}" if of else row["name"])
        if "error" in row:
            yield f"| {name} | failed: {_cell(row['error'])} | | | | | |"
            continue
        theirs = ", ".join(
            f"{column}: " + (timing["error"] if "error" in timing else f"{timing['ratio']:.2f}")
            for column, timing in row.items()
            if column.startswith("torch") and isinstance(timing, dict)
        )
        rate = f"{row['items_per_s']:.1f} {row['unit']}/s" if "items_per_s" in row else ""
        mfu = f"{row['utilization']:.1%}" if "utilization" in row else ""
        memory = f"{row['memory_bytes'] / 2**20:.0f}" if row.get("memory_bytes") else ""
        milliseconds = row["ours"]["median_s"] * 1e3
        yield (
            f"| {name} | {milliseconds:.2f} | {row.get('compile_s', 0):.1f} | {rate} | {mfu} "
            f"| {memory} | {_cell(theirs)} |"
        )


def _of_attention(record: dict) -> Iterator[str]:
    yield "| | ms | MiB | error forward | error of gradients |"
    yield "|---|---:|---:|---:|---:|"
    for row in record.get("rows", []):
        if "error" in row:
            yield f"| {row['name']} | failed: {_cell(row['error'])} | | | |"
            continue
        memory = row.get("memory_bytes") or 0
        yield (
            f"| {row['name']} | {row['ours']['median_s'] * 1e3:.2f} | {memory / 2**20:.0f} "
            f"| {row['error_forward']:.2g} | {row['error_gradient']:.2g} |"
        )


def _of_profile(record: dict) -> Iterator[str]:
    yield "| of | kernel | calls | ms | share |"
    yield "|---|---|---:|---:|---:|"
    for row in record.get("rows", []):
        name = _cell(row["name"])[:90]
        yield f"| {row['of']} | `{name}` | {row['calls']} | {row['ms']:.3f} | {row['share']:.1%} |"


def _of_train(record: dict) -> Iterator[str]:
    for name, value in record.get("facts", {}).items():
        yield f"- {name.replace('_', ' ')}: {value}"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


_SECTIONS = {
    "facts": _of_facts,
    "parity": _of_parity,
    "ops": _timings,
    "pretrain": _timings,
    "detect": _timings,
    "profile": _of_profile,
    "attention": _of_attention,
    "train": _of_train,
}
