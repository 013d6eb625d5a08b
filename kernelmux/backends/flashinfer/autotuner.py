"""FlashInfer's own autotuner, under kernelmux's control.

It races tactics inside the call it is asked about, keeps what is fastest and nothing else: no time, no sample, no check
of the result. So it runs where kernelmux says so (``racing``, never after freeze or in a capture), into a file of
kernelmux's own for one GPU and one set of versions, and what it chose is timed and checked again by
``kernelmux.measure.library_tactics``. ``warmup`` gives a new process what an earlier one has raced.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import StoreError
from ...registry import Packages, frozen
from ...store.paths import cache_dir
from .layouts import flashinfer

if TYPE_CHECKING:
    from ...device import Device
    from ...policies.selection import Selection

OPERATIONS = {"nvfp4_gemm": "fp4_gemm", "nvfp4_mm": "fp4_gemm"}  # op -> FlashInfer's name of what is raced
_DECIDES = ("flashinfer-python", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-frontend",
            "nvidia-cutlass-dsl", "torch", "cuda")  # fmt: skip
_loaded: set[Path] = set()


def tactics_file(device: Device, packages: Packages | None = None) -> Path:
    """Where the tactics for this GPU, driver and these versions are kept.

    FlashInfer's own file names the GPU by its marketing name alone; another driver or partition has another file here.
    """
    found = packages if packages is not None else Packages.installed()
    facts = {name: found.get(name) for name in _DECIDES} | {"driver": device.driver}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "flashinfer" / f"{device.table_name}-{name}.json"


@contextmanager
def racing(file: Path) -> Iterator[None]:
    """What is called inside has its tactics raced, for its token count and the usual ones below it; kept in ``file``.

    Raises FrozenError after freeze or in a capture.
    """
    frozen.guard("race the tactics of FlashInfer's kernels", "with kernelmux.measure.library_tactics.tune")
    file.parent.mkdir(parents=True, exist_ok=True)
    with flashinfer("autotuner").autotune(True, cache=str(file)):
        yield
    _loaded.add(file)


def load_tactics(file: Path) -> bool:
    """Give the autotuner of this process what was raced before; False where there is nothing, or it is of elsewhere."""
    if file in _loaded:
        return True
    if not file.exists():
        return False
    frozen.guard("load the tactics of FlashInfer's kernels")
    if flashinfer("autotuner").AutoTuner.get().load_configs(str(file)):
        _loaded.add(file)
    return file in _loaded


def throw_away(file: Path) -> None:
    """Forget what was raced, on disk and in this process: the next call takes the library's own choice."""
    flashinfer("autotuner").AutoTuner.get().clear_cache()
    file.unlink(missing_ok=True)
    _loaded.discard(file)


def chosen(file: Path, operation: str) -> dict[str, tuple[str, Any]]:
    """Problem (FlashInfer's spelling) -> (runner, tactic) for the entries of one operation. Raises StoreError."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} is no file of FlashInfer's autotuner ({error}). Remove it and tune again.") from error
    found = {}
    for key, value in entries.items():
        if key.startswith("_"):
            continue
        try:
            named = ast.literal_eval(key.partition(",")[0].lstrip("("))  # the rest holds torch dtypes
        except (SyntaxError, ValueError):
            continue
        if named == operation and isinstance(value, list) and len(value) >= 2:
            found[key] = (str(value[0]), value[1])
    return found


def forget() -> None:
    """Load files anew; for tests."""
    _loaded.clear()


def warmup(selection: Selection, ms: Iterable[int]) -> None:
    """Load what was raced on this GPU with these versions, for ``km.warmup()``; nothing is raced."""
    load_tactics(tactics_file(selection.device))
