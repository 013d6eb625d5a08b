from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kernelmux as km
from kernelmux.errors import FrozenError, MissingPackage, NoKernel, UnknownOp, UsageError
from kernelmux.policies import select, selection
from kernelmux.registry import Measurement, Packages, Registry, discovery, epoch, frozen

from . import toyworld
from .toyworld import make_kernel, make_op, world

H100: dict[str, Any] = {"device": "h100-sxm", "dtype": "bfloat16", "shape": {"M": 64, "K": 128}, "activation": "silu"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Two toy ops in place of what kernelmux declares; nothing of a test stays in the caches."""
    registry = world([make_kernel("marlin", ("9.0",), load="kernelmux_absent.kernels:run")])
    registry.add(make_op("blend"), make_kernel("torch", op="blend"))
    monkeypatch.setattr(discovery, "_registry", registry)
    toyworld.CALLS.clear()
    epoch.bump()
    yield registry
    frozen.set_frozen(False)
    epoch.bump()


def test_a_repeated_question_is_answered_by_the_same_selection() -> None:
    first = km.select_backend("mix", **H100)
    assert km.select_backend("mix", **{**H100, "shape": dict(H100["shape"])}) is first
    assert km.select_backend("mix", quant="none", **H100).backend == first.backend
    assert km.select_backend("mix", quant=km.Scheme.of(None), **H100).backend == first.backend
    assert km.select_backend("mix", **{**H100, "shape": {"M": 65, "K": 128}}) is not first


def test_a_quantization_config_is_read() -> None:
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert km.select_backend("mix", quant=config, **H100).scheme.name == "nvfp4"


def test_a_device_may_be_a_torch_device_or_a_device() -> None:
    torch = pytest.importorskip("torch")
    assert km.select_backend("mix", device=torch.device("cpu")).device.name == "cpu"
    assert km.select_backend("mix", device=toyworld.gpu("b200")).device.name == "b200"
    assert km.select_backend("mix", dtype=torch.float16, device="b200").problem.dtype == "float16"


# argument > context manager > environment


def test_the_environment_chooses_and_its_removal_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert km.select_backend("mix", **H100).backend == "triton"
    monkeypatch.setenv("KERNELMUX_BACKEND", "torch")
    assert km.select_backend("mix", **H100).backend == "torch"
    monkeypatch.setenv("KERNELMUX_MIX_BACKEND", "triton")
    chosen = km.select_backend("mix", **H100)
    assert (chosen.backend, chosen.source) == ("triton", "override")
    assert "KERNELMUX_MIX_BACKEND=triton" in chosen.why
    monkeypatch.delenv("KERNELMUX_MIX_BACKEND")
    monkeypatch.delenv("KERNELMUX_BACKEND")
    assert km.select_backend("mix", **H100).source == "fallback"


def test_the_context_manager_outranks_the_environment_and_the_argument_outranks_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELMUX_MIX_BACKEND", "marlin")
    with km.override("mix", backend="torch"):
        assert km.select_backend("mix", **H100).backend == "torch"
        assert km.select_backend("mix", backend="triton", **H100).backend == "triton"
    assert km.select_backend("mix", **H100).backend == "marlin"


def test_overrides_nest_and_end() -> None:
    with km.override("mix", backend="torch"), km.override("blend", backend="torch"):
        with km.override("mix", backend="triton"):
            assert km.select_backend("mix", **H100).source == "override"
            assert km.select_backend("mix", **H100).backend == "triton"
        assert km.select_backend("mix", **H100).backend == "torch"
        assert km.select_backend("blend", device="cpu").source == "override"
    assert km.select_backend("mix", **H100).source == "fallback"


def test_an_override_ends_when_its_block_raises() -> None:
    with pytest.raises(RuntimeError, match="mine"), km.override("mix", backend="torch"):
        raise RuntimeError("mine")
    assert km.select_backend("mix", **H100).source == "fallback"


def test_an_override_belongs_to_its_thread_and_task() -> None:
    seen: list[str] = []
    with km.override("mix", backend="torch"):
        thread = threading.Thread(target=lambda: seen.append(km.select_backend("mix", **H100).backend))
        thread.start()
        thread.join()

    async def task(backend: str) -> str:
        with km.override("mix", backend=backend):
            await asyncio.sleep(0)
            return str(km.select_backend("mix", **H100).backend)

    async def both() -> list[str]:
        return list(await asyncio.gather(task("torch"), task("marlin"), task("triton")))

    assert asyncio.run(both()) == ["torch", "marlin", "triton"]
    assert seen == ["triton"]


def test_one_override_object_can_be_entered_again_and_by_several_threads() -> None:
    shared, wrong = km.override("mix", backend="torch"), []

    def enter() -> None:
        for _ in range(50):
            with shared, shared:
                if km.select_backend("mix", **H100).backend != "torch":
                    wrong.append(1)
            if km.select_backend("mix", **H100).backend != "triton":
                wrong.append(2)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_override_that_can_never_be_honoured_raises_at_once() -> None:
    with (
        pytest.raises(NoKernel, match=r"mix has no kernel on aiter.*It has: cudnn"),
        km.override("mix", backend="aiter"),
    ):
        pass
    with pytest.raises(UnknownOp, match="unknown op 'mixx'"), km.override("mixx", backend="torch"):
        pass
    with pytest.raises(UsageError, match="unknown backend"), km.override("mix", backend="torhc"):
        pass


def test_an_override_that_cannot_be_honoured_here_raises_and_is_not_replaced() -> None:
    with km.override("mix", backend="cutlass"), pytest.raises(NoKernel, match="km.override"):
        km.select_backend("mix", **H100)


# what changes is seen


def test_a_bump_of_the_epoch_makes_selections_anew() -> None:
    first = km.select_backend("mix", **H100)
    epoch.bump()
    assert km.select_backend("mix", **H100) is not first


def test_a_kernel_registered_later_is_a_candidate(toy: Registry) -> None:
    km.select_backend("mix", **H100)
    toy.add(make_kernel("humming", ("9.0",)))
    assert any(other.backend == "humming" for other in km.select_backend("mix", **H100).outranked)


def test_a_measurement_in_the_journal_decides() -> None:
    from kernelmux.store.journal import Journal
    from kernelmux.store.paths import journal_path

    found = Measurement(
        op="mix",
        device="NVIDIA_H100_80GB_HBM3",
        scheme="none",
        dtype="bfloat16",
        shape=(("K", 128),),
        activation="silu",
        m_lo=64,
        m_hi=64,
        kernel="toy.mix[marlin]",
        us=9.5,
        when="2026-03-01T00:00:00Z",
    )
    journal_path().parent.mkdir(parents=True, exist_ok=True)
    with Journal(journal_path()) as journal:
        journal.record_measurement(found)
    epoch.bump()
    chosen = km.select_backend("mix", **H100)
    assert (chosen.backend, chosen.source) == ("marlin", "measured")


def test_a_damaged_journal_costs_its_measurements_and_not_the_selection() -> None:
    from kernelmux.store.paths import journal_path

    journal_path().parent.mkdir(parents=True, exist_ok=True)
    journal_path().write_bytes(b"not a database " * 100)
    with pytest.warns(RuntimeWarning, match="selecting without measurements"):
        assert km.select_backend("mix", **H100).source == "fallback"


def test_a_policy_file_is_laid_over_the_built_in_rules(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rules:\n  - {id: mine, when: {op: mix}, prefer: [torch], why: I said so,\n"
        "     evidence: 'own measurement: mine.csv'}\n"
    )
    chosen = km.select_backend("mix", policy=path, **H100)
    assert (chosen.backend, chosen.rule, chosen.why) == ("torch", "mine", "I said so")


def test_packages_can_be_assumed() -> None:
    there = {"device": "rtx-5090", "shape": {"M": 1}}
    refused = km.select_backend("mix", packages=Packages({}), **there).rejected
    assert "package_missing" in {r.code for r in refused}
    assumed = km.select_backend("mix", packages=Packages.assume_all(), **there)
    assert "cudnn" in {other.backend for other in assumed.outranked}


def test_the_cache_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_LIMIT", 10)
    for m in range(40):
        km.select_backend("mix", **{**H100, "shape": {"M": m, "K": 128}})
    assert len(select._cache) <= 10


# a Selection runs


def test_a_selection_prepares_and_runs_with_the_config_of_the_calls_tokens() -> None:
    chosen = km.select_backend("mix", **H100)
    weights = chosen.prepare(w1=1, w2=2)
    assert weights == {"w1": 1, "w2": 2}  # triton of this world needs no layout of its own
    assert chosen.prepare(w=3) == 3
    assert chosen([0] * 7, weights, flag=True) == (
        "ran",
        [0] * 7,
        weights,
        "config-7",
        {"flag": True, "activation": "silu"},
    )


def test_a_config_is_looked_up_once_for_a_token_count() -> None:
    chosen = km.select_backend("mix", **H100)
    toyworld.CHOICE.asked.clear()
    for _ in range(3):
        chosen([0] * 5, None)
    assert toyworld.CHOICE.asked == [5]


def test_an_op_without_a_token_axis_has_one_config(toy: Registry) -> None:
    toy.add(make_op("fold", axes=("K",), token_axis=None))
    toy.add(make_kernel("triton", op="fold", configs=f"{toyworld.HERE}:configs"))
    chosen = km.select_backend("fold", device="b200", shape={"K": 8})
    assert chosen.config == "config-0"
    assert chosen("x", "w") == ("ran", "x", "w", "config-0", {})


def test_prepare_uses_the_kernels_own_layout() -> None:
    chosen = km.select_backend("mix", backend="torch", **H100)
    assert chosen.prepare(w=1) == ("prepared", "h100-sxm", {"w": 1})
    assert chosen([1], 2)[3] is None


def test_what_is_missing_to_run_is_named_with_the_command() -> None:
    chosen = km.select_backend("mix", backend="marlin", **H100)
    with pytest.raises(MissingPackage, match=r"needs kernelmux_absent.*pip install kernelmux_absent"):
        chosen([1], 2)


def test_a_hook_sees_a_selection_before_weights_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def refuse(chosen: Any) -> None:
        seen.append(chosen)
        raise NoKernel("it has not passed its golden check")

    monkeypatch.setattr(selection, "prepare_hooks", [refuse])
    chosen = km.select_backend("mix", backend="torch", **H100)
    for run in (lambda: chosen.prepare(w=1), lambda: chosen([1], 2)):
        with pytest.raises(NoKernel, match="golden check"):
            run()
    assert seen == [chosen, chosen]


# warmup and freeze


def test_warmup_loads_and_calls_the_kernels_own_hook() -> None:
    chosen = km.select_backend("mix", backend="torch", **H100)
    warmed = km.warmup(chosen, {"op": "blend", "device": "cpu"}, ms=[1, 64])
    assert [s.kernel for s in warmed] == ["toy.mix[torch]", "toy.blend[torch]"]
    assert toyworld.CALLS == [("toy.mix[torch]", (1, 64))]
    assert km.warmup("mix", **H100)[0] is km.select_backend("mix", **H100)


def test_after_freeze_what_is_warm_still_answers_and_runs() -> None:
    (chosen,) = km.warmup("mix", ms=[7], **H100)
    km.freeze()
    assert km.select_backend("mix", **H100) is chosen
    assert chosen([0] * 7, None)[3] == "config-7"
    other = km.select_backend("mix", **{**H100, "shape": {"M": 9, "K": 128}})  # same tables: decided in memory
    assert other([0] * 9, None)[3] == "config-9"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"device": "b300"}, "look up the device b300"),
        ({"shape": {"M": 64, "K": 4096}}, "look up a tuned table"),
        ({"policy": "/nowhere.yaml"}, "read the policy"),
    ],
)
def test_after_freeze_what_would_need_a_file_raises(change: dict[str, Any], what: str) -> None:
    km.select_backend("mix", **H100)
    select._devices.pop("b300", None)
    km.freeze()
    with pytest.raises(FrozenError, match=rf"{what}.*km\.warmup\(\)"):
        km.select_backend("mix", **{**H100, **change})


def test_after_freeze_a_kernel_that_was_not_loaded_raises() -> None:
    chosen = km.select_backend("mix", backend="marlin", **H100)
    km.freeze()
    with pytest.raises(FrozenError, match=r"load kernelmux_absent.*km\.warmup\(\)"):
        chosen([1], 2)


# what importing costs


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(km.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_neither_import_nor_a_first_selection_loads_anything_heavy() -> None:
    heavy = "{'torch', 'triton', 'yaml', 'msgspec', 'numpy', 'click', 'rich', 'packaging', 'importlib.metadata'}"
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import kernelmux as km; print(sorted({heavy} & set(sys.modules) - {{'torch'}}))\n"
        "s = km.select_backend('fused_moe', device='h100-sxm', dtype='bfloat16', activation='silu',\n"
        "    shape=dict(M=64, E=128, N=384, K=2048, topk=8))\n"
        f"print(s.backend, sorted({heavy} & set(sys.modules) - {{'torch'}}))"
    )
    assert run_python(code).splitlines() == ["[]", "triton []"]


def test_running_without_torch_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kernelmux as km, kernelmux.errors\n"
        "s = km.select_backend('fused_moe', device='cpu')\n"
        "try: s.prepare(w1=1, w2=2)\n"
        "except km.errors.MissingPackage as e: print(e)\n"
    )
    assert "pip install 'kernelmux[torch]'" in run_python(code)
