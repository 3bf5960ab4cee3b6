"""Judge the project's goals on accelerators by the parts' records."""

import dataclasses
from collections.abc import Callable

Records = dict[str, dict]
# Result in words; and True if the goal is met, None without a measurement.
Verdict = tuple[str, bool | None]


@dataclasses.dataclass(frozen=True)
class Goal:
    text: str
    judge: Callable[[Records], Verdict]


def _rows(records: Records, part: str) -> list[dict]:
    return [row for row in records.get(part, {}).get("rows", []) if "error" not in row]


def _only_on(kind: str, judge: Callable[[Records], Verdict]) -> Callable[[Records], Verdict]:
    """Restrict a goal to one kind of device; it is not judged on others."""

    def found(records: Records) -> Verdict:
        facts = records.get("facts", {}).get("facts", {})
        if kind not in f"{facts.get('backend')} {facts.get('device')}".lower():
            return f"not on this device ({facts.get('device')})", None
        return judge(records)

    return found


def _steps(records: Records) -> list[dict]:
    return [
        row
        for row in _rows(records, "pretrain")
        if row.get("preset") == "RN50" and row.get("dtype") == "bfloat16"
    ]


def _utilization(records: Records) -> Verdict:
    found = [row for row in _steps(records) if "utilization" in row]
    if not found:
        return "", None
    best = max(found, key=lambda row: row["utilization"])
    return f"{best['utilization']:.1%} ({best['size']})", best["utilization"] >= 0.45


def _ratio(row: dict, columns: tuple[str, ...]) -> float | None:
    """Return the smallest ratio of PyTorch's times to ours."""
    ratios = [row[column]["ratio"] for column in columns if "ratio" in row.get(column, {})]
    return min(ratios, default=None)


def _against_compiled(records: Records) -> Verdict:
    ratios = [_ratio(row, ("torch compiled",)) for row in _steps(records)]
    ratios = [ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return "", None
    return f"{min(ratios):.2f} x", min(ratios) >= 1.5


def _operations(start: str) -> Callable[[Records], Verdict]:
    def judge(records: Records) -> Verdict:
        ratios = {
            f"{row['name']}, {row['dtype']}": _ratio(row, ("torch",))
            for row in _rows(records, "ops")
            if row["name"].startswith(start)
        }
        ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        if not ratios:
            return "", None
        worst = min(ratios, key=ratios.get)
        return f"least {ratios[worst]:.2f} x ({worst})", ratios[worst] >= 1

    return judge


def _detection(images: int, least: float) -> Callable[[Records], Verdict]:
    def judge(records: Records) -> Verdict:
        ratios = [
            _ratio(row, ("torch", "torch compiled"))
            for row in _rows(records, "detect")
            if row.get("images") == images and row.get("dtype") == "bfloat16"
        ]
        ratios = [ratio for ratio in ratios if ratio is not None]
        if not ratios:
            return "", None
        return f"{min(ratios):.2f} x", min(ratios) >= least

    return judge


def _parity(records: Records) -> Verdict:
    rows = [row for row in records.get("parity", {}).get("rows", []) if row["mode"] == "highest"]
    if not rows:
        return "", None
    beyond = sum(len(row.get("beyond", ())) for row in rows)
    failed = [row["name"] for row in rows if "error" in row]
    compared = sum(row.get("compared", 0) for row in rows)
    found = f"{compared - beyond} of {compared} comparisons of {len(rows)} families"
    if failed:
        found += f"; failed: {', '.join(failed)}"
    return found, not beyond and not failed


def _resumed(records: Records) -> Verdict:
    equal = records.get("train", {}).get("facts", {}).get("bit_equal")
    return ("" if equal is None else "bit-equal" if equal else "arrays differ"), equal


GOALS = (
    Goal("parity at `highest` within the CPU's tolerances", _parity),
    Goal("H200: RN50 pretraining in bf16, MFU of 45% or more", _only_on("h200", _utilization)),
    Goal(
        "H200: RN50 pretraining in bf16, 1.5 x `torch.compile` or more",
        _only_on("h200", _against_compiled),
    ),
    Goal(
        "GPU: RoIAlign as fast as torchvision's kernel, backward included",
        _only_on("gpu", _operations("RoIAlign")),
    ),
    Goal("GPU: NMS as fast as torchvision's kernel", _only_on("gpu", _operations("NMS"))),
    Goal("GPU: detection in bf16, batch 1, 2 x PyTorch or more", _only_on("gpu", _detection(1, 2))),
    Goal(
        "GPU: detection in bf16, batch 16, 4 x PyTorch or more", _only_on("gpu", _detection(16, 4))
    ),
    Goal("a job killed and resumed ends bit-equal", _resumed),
)
