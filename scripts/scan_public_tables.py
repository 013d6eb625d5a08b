"""List what is in the tuned MoE tables of vLLM's and SGLang's wheels, and every fault found: docs/public-tables.md.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23 -d wheels
    python scripts/scan_public_tables.py wheels/vllm-*.whl wheels/sglang-*.whl

Only names, counts and faults leave the wheels; nothing of theirs is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernelmux.tuning_configs.check import FileReport, check
from kernelmux.tuning_configs.engines import foreign, sglang, vllm
from kernelmux.tuning_configs.names import TableName

OUT = Path(__file__).resolve().parents[1] / "docs" / "public-tables.md"
TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
MEANING = {
    "clamped": "the launcher runs another value than the one written",
    "wrong_scale": "BLOCK_SIZE_K spans several scale blocks and is not clamped (read in the kernel, not run)",
    "dead_dtype": "no look-up asks for this dtype",
    "dead_device": "no board reports this device name",
    "empty_device": "the name carries no device",
    "unreachable": "no look-up asks for this name",
    "unsorted_keys": "token counts out of order: ties go to the first in the file",
    "crlf": "lines end in CR LF",
    "shared_memory": "a tile needs more shared memory than the device has",
    "pair_block_m": "up and down disagree in BLOCK_SIZE_M",
}


@dataclass(frozen=True)
class Shipped:
    """One engine's tables: the wheel's name, the reports in path order, and what the files hold."""

    engine: str
    wheel: str
    root: Path
    reports: list[FileReport]

    @property
    def accepted(self) -> list[FileReport]:
        return [report for report in self.reports if report.ok]

    def place(self, report: FileReport) -> str:
        return report.path.relative_to(self.root).as_posix()


def unpacked(wheel: Path, folder: Path) -> Shipped:
    """The tables of one wheel, unpacked below ``folder`` and judged."""
    engine = wheel.name.partition("-")[0]
    if engine not in TITLES:
        raise SystemExit(f"{wheel.name} is no wheel of vLLM or SGLang: give vllm-*.whl or sglang-*.whl.")
    inner = vllm.FOLDER if engine == "vllm" else sglang.FOLDER / "configs"
    root = folder / engine / inner
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = Path(member)
            below = path.is_relative_to(inner) and path.suffix == ".json"
            if below and (engine == "vllm" or path.parent.name.startswith("triton_")):
                archive.extract(member, folder / engine)
    return Shipped(engine, wheel.name, root, check([root], engine))


def identical(shipped: Shipped) -> int:
    """How many accepted files are rendered to the bytes they have."""
    same = 0
    for report in shipped.accepted:
        table = foreign.read(report.path).table
        same += table is not None and table.render() == report.path.read_bytes()
    return same


def copies(shipped: Shipped) -> list[list[str]]:
    """Groups of files of equal bytes whose names differ in E or N."""
    groups: dict[bytes, list[FileReport]] = defaultdict(list)
    for report in shipped.reports:
        groups[report.path.read_bytes()].append(report)
    names = [[TableName.parse(r.path.name) for r in group] for group in groups.values()]
    odd = [len({(name.E, name.N) for name in group}) > 1 for group in names]
    return [[shipped.place(r) for r in group] for group, is_odd in zip(groups.values(), odd, strict=True) if is_odd]


def page(all_shipped: list[Shipped]) -> str:
    lines = [
        "# The tuned MoE tables that vLLM and SGLang ship",
        "",
        "Written by `python scripts/scan_public_tables.py`; do not edit. Judged by `kernelmux configs check --as ...`,",
        "whose rules follow each engine's own look-up and launch. A table is accepted when nothing is wrong with it;",
        "a fault does not mean that the engine stops: the last column says what happens.",
        "",
        "| | " + " | ".join(f"{TITLES[s.engine]} (`{s.wheel.split('-')[1]}`)" for s in all_shipped) + " |",
        "|---|" + "---:|" * len(all_shipped),
        "| tables | " + " | ".join(str(len(s.reports)) for s in all_shipped) + " |",
        "| accepted | " + " | ".join(str(len(s.accepted)) for s in all_shipped) + " |",
        "| accepted, and written back with the same bytes | "
        + " | ".join(str(identical(s)) for s in all_shipped) + " |",
        "| with faults | " + " | ".join(str(len(s.reports) - len(s.accepted)) for s in all_shipped) + " |",
        "",
        "## Faults by kind (files)",
        "",
        "| fault | " + " | ".join(TITLES[s.engine] for s in all_shipped) + " | what it means |",
        "|---|" + "---:|" * len(all_shipped) + "---|",
    ]  # fmt: skip
    counts = [Counter(code for r in s.reports for code in {f.code for f in r.faults}) for s in all_shipped]
    for code in sorted({code for each in counts for code in each}):
        row = " | ".join(str(each[code]) for each in counts)
        lines.append(f"| `{code}` | {row} | {MEANING.get(code, '')} |")
    for shipped in all_shipped:
        lines += ["", f"## {TITLES[shipped.engine]}: each fault", ""]
        by_fault: dict[tuple[str, str], list[str]] = defaultdict(list)
        for report in shipped.reports:
            for fault in report.faults:
                where = f" at {fault.where}" if fault.where not in ("", "file name", "device_name") else ""
                by_fault[fault.code, fault.message].append(f"`{shipped.place(report)}`{where}")
        for (code, message), files in sorted(by_fault.items()):
            lines += [f"**{code}**: {message}", "", *(f"- {file}" for file in files), ""]
    for shipped in all_shipped:
        lines += ["", f"## {TITLES[shipped.engine]}: the same bytes for another E or N", ""]
        lines += ["Not faults of form, but one of each group was tuned for another problem.", ""]
        lines += [f"- {', '.join(f'`{name}`' for name in group)}" for group in copies(shipped)] or ["None."]
    lines += [
        "",
        "## Devices (files)",
        "",
        "| device name | " + " | ".join(TITLES[s.engine] for s in all_shipped) + " |",
    ]
    lines.append("|---|" + "---:|" * len(all_shipped))
    devices = [Counter(TableName.parse(r.path.name).device_name or "(empty)" for r in s.reports) for s in all_shipped]
    for name in sorted({name for each in devices for name in each}):
        lines.append(f"| {name} | " + " | ".join(str(each[name]) for each in devices) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shipped = [unpacked(wheel, Path(folder)) for wheel in args.wheels]
        args.out.write_text(page(shipped), encoding="utf-8")
    for each in shipped:
        print(f"{TITLES[each.engine]}: {len(each.reports)} tables, {len(each.accepted)} accepted")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
