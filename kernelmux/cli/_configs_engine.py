"""``kernelmux configs show --as vllm|sglang``: the answer an engine's own look-up would give."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.cli.output import emit, say
from kernelmux.errors import BadShape, UnknownDevice, UsageError

if TYPE_CHECKING:
    from kernelmux.tuning_configs.engines.question import Answer, Question

_PLAIN = {"bfloat16": None, "bf16": None, "float16": None, "fp16": None, "auto": None, "none": None, "fp32": "float32"}


def show_as(
    engine: str,
    path: Path | None,
    device: str,
    shape: dict[str, Any],
    m: int,
    dtype: str,
    block: str | None,
    per_channel: bool,
    triton: str | None,
    as_json: bool,
) -> None:
    """Print which file and entry ``engine`` uses for ``m`` tokens, and what around it would change that."""
    from kernelmux.registry.packages import Packages
    from kernelmux.tuning_configs.engines import sglang, vllm

    question = asked(device, shape, dtype, block, per_channel)
    module = vllm if engine == "vllm" else sglang
    bundled = module.folder_of(path if path is not None else _installed(engine))
    env = os.environ.get(module.ENV)
    env_folder = Path(env) if env else None
    changes: list[tuple[str, Answer]]
    if engine == "vllm":
        answer = vllm.lookup(question, m, bundled, env_folder)
        changes = vllm.changes(question, m, bundled, env_folder)
    else:
        version = triton or Packages.installed().get("triton")
        if not version:
            raise UsageError("SGLang looks by Triton's version, and none is installed: give --triton-version.")
        answer = sglang.lookup(question, m, env_folder or bundled, version)
        changes = sglang.changes(question, m, bundled, env_folder, version)
    data = {
        **answer.to_json(),
        "folder": str(env_folder or bundled) if engine == "sglang" else str(bundled),
        "environment": {module.ENV: env},
        "changes": [{"if": what, "answer": then.to_json()} for what, then in changes],
        "stand_ins": _stand_ins(engine, question, m, bundled, env_folder, triton) if answer.source == "default" else [],
    }
    emit(data, as_json, lambda: _words(answer, changes, data["stand_ins"]))


def asked(device: str, shape: dict[str, Any], dtype: str, block: str | None, per_channel: bool) -> Question:
    """The question that options spell. Raises UsageError naming the option that is off."""
    from kernelmux.device import resolve_device
    from kernelmux.tuning_configs.engines.question import Question

    missing = [axis for axis in ("E", "N") if not isinstance(shape.get(axis), int)]
    if missing:
        raise BadShape(f"--shape lacks {', '.join(missing)}: write E=128,N=384 (and topk=8 for int4).")
    word = dtype.lower()
    try:
        described = resolve_device(device)
        name, vendor, shared = described.torch_name, described.vendor, described.shared_bytes
    except (UnknownDevice, UsageError):
        # A GPU that nobody listed, or a MIG slice: the engines ask by the name alone.
        if not re.match(r"(NVIDIA|AMD|Tesla|Radeon|Intel)", device):
            raise
        name, vendor, shared = device.replace("_", " "), "amd" if device.startswith("AMD") else "nvidia", None
    return Question(
        E=shape["E"], N=shape["N"], device=name, dtype=_PLAIN.get(word, word), block_shape=_block(block),
        per_channel=per_channel, topk=shape.get("topk", 8), vendor=vendor, shared_bytes=shared,
    )  # fmt: skip


def _block(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"\[?\s*(\d{1,6})\s*[,x]\s*(\d{1,6})\s*\]?", text)
    if found is None:
        raise UsageError(f"--block-shape {text!r} is not two numbers. Write it like 128,128.")
    return int(found[1]), int(found[2])


def _installed(engine: str) -> Path:
    """Where the engine's package lies; looking for it imports nothing."""
    spec = importlib.util.find_spec(engine)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{engine} is not installed here: name the folder of its tables.")
    return Path(next(iter(spec.submodule_search_locations)))


def _stand_ins(
    engine: str, question: Question, m: int, bundled: Path, env_folder: Path | None, triton: str | None
) -> list[dict[str, Any]]:
    """Tables of other names that evidence says may stand in: the engine itself never looks for them."""
    from kernelmux.tuning_configs import aliases
    from kernelmux.tuning_configs.engines import sglang, vllm
    from kernelmux.tuning_configs.engines.question import table_name

    found = []
    for alias in aliases.for_device(table_name(question.device)):
        other = replace(question, device=alias.name.replace("_", " "))
        if engine == "vllm":
            answer = vllm.lookup(other, m, bundled, env_folder)
        else:
            answer = sglang.lookup(other, m, env_folder or bundled, triton or "0.0.0")
        if answer.source == "file":
            found.append({"path": str(answer.path), "grade": alias.grade, "why": alias.why, "source": alias.source})
    return found


def _words(answer: Answer, changes: list[tuple[str, Answer]], stand_ins: list[dict[str, Any]]) -> None:
    say(f"{answer.engine} at M={answer.m} asks for {answer.name}")
    say(f"  up and down: {_line(answer)}" if answer.down is None else f"  up:   {_line(answer)}")
    if answer.down is not None:
        say(f"  down: {_line(answer.down)}")
    for what, then in changes:
        same = (then.path, then.key, then.entry) == (answer.path, answer.key, answer.entry)
        same = same and _entry(then.down) == _entry(answer.down)
        say(f"  {what}: {'the same' if same else _line(then)}")
        if not same and then.down is not None:
            say(f"  {' ' * len(what)}  down: {_line(then.down)}")
    for each in stand_ins:
        say(f"  {each['path']} may stand in ({each['grade']}: {each['why']}); copy it under the name above.")


def _entry(answer: Answer | None) -> object:
    return None if answer is None else (answer.path, answer.key, answer.entry)


def _line(answer: Answer) -> str:
    entry = " ".join(f"{key}={value}" for key, value in answer.entry.items())
    if answer.source == "file":
        away = "exactly" if not answer.distance else f"{answer.distance} away"
        return f"{answer.path} ({answer.why}), entry M={answer.key} ({away}): {entry}"
    return f"{answer.why}. {'The default: ' + entry if answer.source == 'default' else ''}".rstrip()
