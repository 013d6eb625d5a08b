"""Kill a tuner on a real GPU at a random moment, resume it, and prove that nothing measured was measured again.

python scripts/kill_and_resume.py --shape E=128,N=384,K=2048,topk=8 --out result.json [--after SECONDS]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernelmux.store.journal import Journal
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

MS = "1,4,16,64,128,512,1024,2048,4096"


def rows(journal: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What identifies each recorded step -> its samples and when it was recorded."""
    with Journal(journal, read_only=True) as opened:
        return {
            (row.run, row.m, row.side, row.tile, row.rung): (row.samples_us, row.created)
            for run in opened.runs()
            for row in opened.rows(run.key)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True)
    parser.add_argument(
        "--after", type=float, help="seconds from the first record to the kill; random below 8 if not given"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    after = options.after or random.uniform(0.2, 8.0)
    with tempfile.TemporaryDirectory() as folder:
        journal, tables = Path(folder, "journal.sqlite"), Path(folder, "tables")
        command = [
            sys.executable, "-m", "kernelmux.cli", "tune", "--shape", options.shape, "--effort", "quick", "--m", MS,
            "--journal", str(journal), "--out", str(tables),
        ]  # fmt: skip
        victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while victim.poll() is None and not (journal.exists() and rows(journal)):
            time.sleep(0.1)
        time.sleep(after)
        early = victim.poll() is not None
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        before = rows(journal) if journal.exists() else {}
        half_written = [str(p) for p in tables.rglob("*") if p.is_file()]
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
        after_rows = rows(journal)
        files = sorted(tables.rglob("*.json"))
        up, down = (
            {int(m): Tile.from_json(entry) for m, entry in json.loads(file.read_text()).items()}
            for file in files if not file.name.endswith(".meta.json")
        )  # fmt: skip
        table = MoeTable(up, down)
        result = {
            "killed_after_first_record_s": round(after, 1), "finished_before_the_kill": early,
            "resumed_exit_code": done.returncode,
            "steps_before": len(before), "steps_after": len(after_rows),
            "steps_measured_again": sum(after_rows.get(key) != value for key, value in before.items()),
            "files_before_resume": len(half_written), "table_keys": list(table.keys),
        }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    complete = list(table.keys) == [int(m) for m in MS.split(",")]
    if done.returncode or early or result["steps_measured_again"] or not before or not complete:
        raise SystemExit("the resumed run is not what it should be" + done.stderr[-2000:])


if __name__ == "__main__":
    main()
