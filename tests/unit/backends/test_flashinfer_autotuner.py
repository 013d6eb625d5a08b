"""FlashInfer's autotuner under kernelmux's control: when it races, where its file is, what is recorded of it."""

from __future__ import annotations

import contextlib
import json

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.backends.flashinfer import autotuner  # noqa: E402
from kernelmux.contracts import nvfp4_math  # noqa: E402
from kernelmux.device import resolve_device  # noqa: E402
from kernelmux.errors import FrozenError, StoreError, UsageError  # noqa: E402
from kernelmux.measure.library_tactics import tune  # noqa: E402
from kernelmux.policies.policy import Policy  # noqa: E402
from kernelmux.policies.resolve import resolve  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Packages, Problem, discovery, frozen  # noqa: E402
from kernelmux.store.journal import Journal  # noqa: E402
from tests.unit.backends.fake_library import install  # noqa: E402
from tests.unit.backends.test_flashinfer_meaning import _fp4_quantize, _mm_fp4  # noqa: E402

N, K = 128, 256
KEY = "('fp4_gemm', 'CutlassFp4GemmRunner', ((16, 128), (128, 128), (-1, 4), (0,)), (torch.bfloat16,))"
INSTALLED = Packages(
    {"flashinfer-python": "0.7.2", "torch": "2.11.0+cu130", "nvidia-cutlass-dsl": "4.8.0",
     "nvidia-cuda-runtime": "13.0.96"}
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_loaded():
    autotuner.forget()
    yield
    autotuner.forget()
    frozen.set_frozen(False)


class Tuner:
    """What a fake library does when it is told to race."""

    def __init__(self):
        self.racing, self.contexts, self.cleared = False, [], 0

    @contextlib.contextmanager
    def _context(self, bound):
        self.contexts.append(bound)
        self.racing = True
        yield
        self.racing = False
        with open(bound["cache"], "w", encoding="utf-8") as file:
            json.dump({"_metadata": {"gpu": "B200"}, KEY: ["CutlassFp4GemmRunner", 7]}, file)

    def _clear(self, bound):
        self.cleared += 1

    def results(self, mm=_mm_fp4):
        return {
            "flashinfer.autotuner:autotune": self._context,
            "flashinfer.autotuner:AutoTuner.load_configs": lambda bound: True,
            "flashinfer.autotuner:AutoTuner.clear_cache": self._clear,
            "flashinfer:fp4_quantize": _fp4_quantize,
            "flashinfer:mm_fp4": mm,
        }


def selected(backend, device="b200"):
    problem = Problem("nvfp4_gemm", Scheme.of("nvfp4"), "bfloat16", {"N": N, "K": K})
    policy, registry = Policy.builtin("nvfp4_gemm"), discovery.registry()
    return resolve(
        "nvfp4_gemm", resolve_device(device), Packages.assume_all(), problem,
        policy=policy, registry=registry, override=backend,
    )  # fmt: skip


def layer():
    w, w_scale = nvfp4_math.quantize_reference(torch.randn(N, K), torch.tensor(1e-3))
    return dict(w=w, w_scale=w_scale, w_global_scale=torch.tensor(1e-3), input_scale=torch.tensor(2e-3))


def inputs(*ms):
    return {m: torch.randn(m, K).bfloat16() for m in ms}


class Clock:
    """A timer: 8 us untuned, 5 us after a race."""

    def __init__(self, tuner):
        self.tuner, self.calls = tuner, 0

    def __call__(self, call):
        call()
        assert not self.tuner.racing
        self.calls += 1
        us = 5.0 if self.tuner.contexts else 8.0
        return (us, us + 0.5, us - 0.5)


def run(monkeypatch, tmp_path, backend="flashinfer.mm_fp4[cutlass]", mm=_mm_fp4):
    tuner = Tuner()
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a Selection of a GPU runs on the CPU then
    calls = install(monkeypatch, "flashinfer-python", tuner.results(mm))
    selection, path = selected(backend), tmp_path / "journal.sqlite"
    found = tune(
        selection, layer(), inputs(1, 16, 64), timer=Clock(tuner), journal=path, packages=INSTALLED
    )  # fmt: skip
    return found, tuner, calls, selection, path


def test_a_race_is_run_once_timed_before_and_after_and_recorded(monkeypatch, tmp_path):
    found, tuner, _calls, selection, path = run(monkeypatch, tmp_path)
    assert found.raced and not found.wrong
    assert found.us == {1: 5.0, 16: 5.0, 64: 5.0} and found.before_us[16] == 8.0
    (context,) = tuner.contexts
    assert context["tune_mode"] is True and "tuning_buckets" not in context
    assert found.tactics == {KEY: ("CutlassFp4GemmRunner", 7)}
    with Journal(path, read_only=True) as journal:
        (told,) = journal.runs()
        rows = journal.rows(told.key)
        assert [row.m for row in rows] == [1, 16, 64] and all(row.side == "gemm" for row in rows)
        assert rows[0].samples_us == (5.0, 5.5, 4.5) and rows[0].extra["before_us"] == [8.0, 8.5, 7.5]
        assert json.loads(rows[0].tile)["tactics"][KEY] == ["CutlassFp4GemmRunner", 7] and rows[0].extra["sha256"]
        measured = journal.measurements("nvfp4_gemm", selection.device.table_name)
    assert [m.kernel for m in measured] == ["flashinfer.mm_fp4[cutlass]"] * 3
    assert [(m.m_lo, m.m_hi) for m in measured] == [(1, 3), (4, 31), (32, 256)]
    assert measured[0].shape == (("K", K), ("N", N)) and measured[0].versions["flashinfer-python"] == "0.7.2"
    assert measured[0].scheme == "nvfp4" and measured[0].us == 5.0


def test_what_was_recorded_is_what_select_backend_goes_by(monkeypatch, tmp_path):
    found, _, _, selection, _ = run(monkeypatch, tmp_path)
    problem = Problem("nvfp4_gemm", Scheme.of("nvfp4"), "bfloat16", {"M": 16, "N": N, "K": K})
    chosen = resolve(
        "nvfp4_gemm", selection.device, INSTALLED, problem, policy=Policy.builtin("nvfp4_gemm"),
        registry=discovery.registry(), measurements=found.measurements,
    )  # fmt: skip
    assert (chosen.kernel, chosen.source) == ("flashinfer.mm_fp4[cutlass]", "measured")


def test_kernels_whose_tactics_no_rule_names_are_timed_and_not_raced(monkeypatch, tmp_path):
    found, tuner, *_ = run(monkeypatch, tmp_path, backend="flashinfer.mm_fp4[cudnn]")
    assert not found.raced and not tuner.contexts and found.us == found.before_us
    assert "no rule" in found.why and len(found.measurements) == 3


def test_a_tactic_whose_result_is_wrong_is_thrown_away_and_measured_for_nobody(monkeypatch, tmp_path):
    def wrong_after_the_race(bound):
        right = _mm_fp4(bound)
        return right if bound["a"].shape[0] != 16 or not tuners[-1].contexts else right * float("nan")

    tuners = []
    make = Tuner.__init__
    monkeypatch.setattr(Tuner, "__init__", lambda self: (make(self), tuners.append(self))[0])
    found, tuner, _, selection, path = run(monkeypatch, tmp_path, mm=wrong_after_the_race)
    assert found.wrong == {16: "NaN or infinity in the result"} and tuner.cleared == 1
    assert not autotuner.tactics_file(selection.device, INSTALLED).exists()
    assert [m.us for m in found.measurements] == [8.0, 8.0]  # of 1 and 64 tokens, without the tactics
    with Journal(path, read_only=True) as journal:
        rows = {row.m: row.status for row in journal.rows(journal.runs()[0].key)}
    assert rows == {1: "ok", 16: "wrong", 64: "ok"}


def test_nothing_is_raced_after_freeze(monkeypatch, tmp_path):
    install(monkeypatch, "flashinfer-python", Tuner().results())
    frozen.set_frozen(True)
    with pytest.raises(FrozenError, match="race the tactics"), autotuner.racing(tmp_path / "t.json"):
        pass


def test_a_file_belongs_to_one_gpu_one_driver_and_one_set_of_versions():
    b200, other = resolve_device("b200"), resolve_device("b300")
    newer = Packages({"flashinfer-python": "0.7.3"})
    files = {autotuner.tactics_file(b200, INSTALLED), autotuner.tactics_file(other, INSTALLED),
             autotuner.tactics_file(b200, newer)}  # fmt: skip
    assert len(files) == 3 and all(file.parent.name == "flashinfer" for file in files)
    assert autotuner.tactics_file(b200, INSTALLED) in files


def test_a_new_process_loads_what_was_raced_at_warmup_and_once(monkeypatch):
    calls = install(monkeypatch, "flashinfer-python", Tuner().results())
    selection = selected("flashinfer.mm_fp4[cutlass]")
    autotuner.warmup(selection, (1, 16))
    assert not calls  # nothing was raced before
    file = autotuner.tactics_file(selection.device)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    km.warmup(selection, ms=(1, 16))
    km.warmup(selection, ms=(1, 16))
    (loaded,) = calls
    assert loaded.function.endswith("load_configs") and loaded.bound["path"] == str(file)


def test_a_file_of_another_environment_is_not_taken(monkeypatch, tmp_path):
    refusing = {**Tuner().results(), "flashinfer.autotuner:AutoTuner.load_configs": lambda bound: False}
    install(monkeypatch, "flashinfer-python", refusing)
    (tmp_path / "t.json").write_text("{}")
    assert autotuner.load_tactics(tmp_path / "t.json") is False
    assert autotuner.load_tactics(tmp_path / "none.json") is False


def test_what_cannot_be_tuned_or_read_is_named(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="at least one token count"):
        tune(selected("flashinfer.mm_fp4[cutlass]"), layer(), {}, timer=lambda call: (1.0,))
    (tmp_path / "t.json").write_text("no json")
    with pytest.raises(StoreError, match=r"Remove it and tune again"):
        autotuner.chosen(tmp_path / "t.json", "fp4_gemm")
    (tmp_path / "t.json").write_text(json.dumps({KEY: ["R", [1, 2]], "('bf16_gemm', 'X')": ["Y", 1], "odd": 3}))
    assert autotuner.chosen(tmp_path / "t.json", "fp4_gemm") == {KEY: ("R", [1, 2])}
