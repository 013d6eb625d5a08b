"""The sentences of a tuning report that Markdown and HTML share, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelmux.reports.tuning import TIES_SHOWN, brief
from kernelmux.reports.words import NONE, count, number, percent, seconds, signed
from kernelmux.tuning_configs.tile import Tile

VERDICTS = {"faster": "faster", "tie": "tie", "same": "the default", "slower": "slower"}

CONDITIONS = {
    "sm_clock_mhz": "SM clock, MHz", "memory_clock_mhz": "memory clock, MHz", "temperature_c": "temperature, °C",
    "power_w": "power, W", "throttle": "throttled by",
}  # fmt: skip


def title(report: Mapping[str, Any]) -> str:
    what = report["model"] or brief(report)
    return f"{what} on {report['device']['torch_name']}"


def kind(report: Mapping[str, Any]) -> str:
    """What the reader is looking at, in one sentence."""
    if report["source"] == "predicted":
        return "Predicted tiles: compiled and ranked for this GPU, nothing was timed. A measured table outranks them."
    whose = "" if report["reader"] == "kernelmux" else f", for {report['reader']} to read"
    return f"Measured tiles of the fused MoE's two GEMMs{whose}, raced on this GPU with the default in every final."


def tile(entry: Mapping[str, Any] | None) -> str:
    return Tile.from_json(entry).short() if entry else NONE


def cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, what it says) of the headline."""
    said, out = report["summary"], []
    if said["mean_gain"] is not None:
        best = said["best"]
        top = f"; best {signed(best['gain'])} at M={best['m']}" if best else ""
        out.append(("Gain over the default", signed(said["mean_gain"]), f"less time, geometric mean over M{top}"))
        text = f"{count(said['tie'], 'tie') if said['tie'] else 'no ties'}, {said['slower'] or 'none'} slower"
        text += f", {count(said['same'], 'time')} the default itself" if said["same"] else ""
        out.append(("Faster than the default", f"{said['faster']} of {said['rows']} M", text))
    else:
        out.append(("Tiles for", f"{said['rows']} M", f"{said['same']} of them the default heuristic's"))
    near = said["nearest_roofline"]
    if near:
        rates = "measured ceilings" if report["ceilings"]["source"] == "measured" else "data sheet rates"
        out.append(("Most of the roofline", percent(near["roofline"], 0), f"at M={near['m']}, of {rates}"))
    if report["total_seconds"] is not None:
        done = report["counts"]
        words = [
            count(done[key], one) for key, one in (("measured", "timing"), ("compiled", "binary")) if done.get(key)
        ]
        text = ", ".join(words).replace("binarys", "binaries")
        out.append(("Time", seconds(report["total_seconds"]), text or "in all"))
    return out


def ceilings(report: Mapping[str, Any]) -> str:
    """Which rates the roofline stands on."""
    rates = report["ceilings"]
    if rates is None:
        return "No roofline: no rates are known for this GPU."
    origin = "measured ceilings" if rates["source"] == "measured" else "data sheet rates"
    return (
        f"The roofline stands on {origin}: {number(rates['tflops'])} TFLOP/s and {number(rates['bandwidth_gbs'])} GB/s "
        f"({rates['words']})."
    )


def reading(report: Mapping[str, Any]) -> list[str]:
    """How to read the table."""
    lines = [
        "Tiles read BLOCK_SIZE_M x N x K, then g: GROUP_SIZE_M, w: warps, s: stages, tma: operands through TMA "
        "descriptors. Up is the gate/up projection, down the other; they share BLOCK_SIZE_M.",
    ]
    if report["summary"]["timed"]:
        lines += [
            "Times are medians of one call in microseconds, L2-cold. up + down is what tiles are compared by; the sort "
            "of tokens by expert has its own column. ± is half of the 95% interval of up + down.",
            "A tie is a difference from the default within its own 95% interval: its sign means nothing. “Tied” "
            f"counts the pairs that could not be told from the chosen one (at most {TIES_SHOWN} are kept).",
        ]
    if report["ceilings"] and report["summary"]["timed"]:
        lines.append(
            "% of the roofline is the least time for the work (both GEMMs, every expert that uniform routing visits "
            "read once, x read, the output written) over the measured up + down. " + ceilings(report)
        )
        if any((row["roofline"] or 0) > 1 for row in report["rows"]):
            lines.append(_above(report))
    if report["shipped"]:
        shipped = report["shipped"]
        lines.append(
            f"The {shipped['engine']} entries are of its table for {shipped['table_of']}, tuned on its own kernel. "
            "They were not timed here and are shown for comparison of the choice only."
        )
    return lines


def _above(report: Mapping[str, Any]) -> str:
    text = "Above 100%: a copy reads and writes, so its rate is no strict bound where weights are only read"
    best = max(row["roofline"] or 0 for row in report["rows"] if row["bound"] == "memory" or not row["bound"])
    if report["datasheet"]:
        reached, most = best * report["ceilings"]["bandwidth_gbs"], report["datasheet"]["bandwidth_gbs"]
        text += f"; the fastest reaches {number(reached)} of the data sheet's {number(most)} GB/s"
    return text + "."


def time_note(row: Mapping[str, Any]) -> str:
    """What stands in for a time that is not there."""
    return f"tiles of M={row['from_m']}" if row["from_m"] is not None else NONE


def half(row: Mapping[str, Any]) -> str:
    ends = row["interval_us"]
    return NONE if not ends else f"±{number((ends[1] - ends[0]) / 2)}"


def ties(row: Mapping[str, Any]) -> str:
    return f"{row['ties']}+" if row["ties"] >= TIES_SHOWN else str(row["ties"]) if row["us"] is not None else NONE


def gain(row: Mapping[str, Any]) -> str:
    """+5.3% or, of a tie, "tie (+0.1%)"."""
    if row["verdict"] == "same":
        return "the default"
    if row["gain"] is None:
        return NONE
    shown = signed(row["gain"])
    return f"tie ({shown})" if row["verdict"] == "tie" else shown


def provenance(report: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(name, value, whether it is code) of everything known about where the figures come from."""
    device, made = report["device"], report["provenance"]
    facts = [f"{device['torch_name']} ({device['name']})"]
    facts += [f"capability {device['capability']}"] if device.get("capability") else []
    facts += [f"{device['sm_count']} SMs"] if device.get("sm_count") else []
    facts += [f"{device['shared_bytes']:,} B shared memory a block"] if device.get("shared_bytes") else []
    kernel = made["kernel"]
    rows = [
        ("Device", ", ".join(facts), False),
        ("Driver", made["driver"] or "", False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items()), False),
        ("Kernel", kernel.get("name", ""), False),
        ("Kernel source hash", kernel.get("source_hash", ""), True),
        ("Shape", brief(report), True),
        ("Effort", report["effort"], False),
        ("Made", made["created"], False),
        ("Host", made["host"], False),
        ("Command" if made["command"] else "To tune again", made["command"] or made["again"], True),
        ("Ceilings", ceilings(report), False),
    ]
    rows += [("Files", name, True) for name in made["files"]]
    return [row for row in rows if row[1]]
