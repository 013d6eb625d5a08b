"""Changes that somebody might make, each of which a comparison with a baseline must report.

The code that compares never reads this file. ``expect`` are the words of which at least one must be among the changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kernelmux.device import Capability, capabilities, catalog
from kernelmux.registry import (
    ANY,
    Aligned,
    Kernel,
    KnownIssue,
    NeedsPackage,
    Numerics,
    OnCapability,
    Packages,
    Tolerance,
)
from kernelmux.reports.matrix import Cell

from .matrix_setting import Replayed, Setting, changed


@dataclass(frozen=True)
class Mutation:
    """``on``: static (a Setting), replayed (a list of Replayed) or compiled (a list of Cell)."""

    name: str
    on: str
    make: Callable[[Any], Any]
    expect: frozenset[str]
    better: bool = False  # told, and no reason to fail


MUTATIONS: list[Mutation] = []


def mutation(on: str, *expect: str, better: bool = False) -> Callable[[Any], Any]:
    def take(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        MUTATIONS.append(Mutation(make.__name__, on, make, frozenset(expect), better))
        return make

    return take


# -- rules


def _moved(rules: tuple[Any, ...], name: str, place: int) -> tuple[Any, ...]:
    one = next(rule for rule in rules if rule.id == name)
    rest = [rule for rule in rules if rule is not one]
    return (*rest[:place], one, *rest[place:])


def _with_rule(rules: tuple[Any, ...], name: str, make: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(make(rule) if rule.id == name else rule for rule in rules)


@mutation("static", "decided")
def a_rule_reordered_so_that_a_demand_is_no_longer_seen_first(it: Setting) -> Setting:
    return it.with_rules("rms_norm", lambda rules: _moved(rules, "rms-norm-nvidia", 0))


@mutation("static", "chosen", "decided")
def two_rules_of_fp4_reordered(it: Setting) -> Setting:
    return it.with_rules("nvfp4_gemm", lambda rules: _moved(rules, "nvfp4-gemm-elsewhere", 0))


@mutation("static", "chosen", "decided")
def a_rule_removed(it: Setting) -> Setting:
    return it.with_rules("nvfp4_gemm", lambda rules: tuple(r for r in rules if r.id != "nvfp4-gemm-sm120"))


@mutation("static", "chosen")
def a_preference_reversed(it: Setting) -> Setting:
    return it.with_rules(
        "rms_norm", lambda rules: _with_rule(rules, "rms-norm-nvidia", lambda r: r.but(prefer=r.prefer[::-1]))
    )


@mutation("static", "runner-up")
def the_second_preference_swapped_with_the_third(it: Setting) -> Setting:
    def swapped(rule: Any) -> Any:
        first, second, third, *rest = rule.prefer
        return rule.but(prefer=(first, third, second, *rest))

    return it.with_rules("rms_norm", lambda rules: _with_rule(rules, "rms-norm-nvidia", swapped))


@mutation("static", "chosen", "decided")
def a_rule_of_one_capability_widened_to_another(it: Setting) -> Setting:
    return it.with_rules(
        "nvfp4_gemm",
        lambda rules: _with_rule(
            rules, "nvfp4-gemm-sm100", lambda r: r.but(capabilities=r.capabilities | capabilities("12.0"))
        ),
    )


@mutation("static", "rejected", "chosen")
def a_rule_that_forbids_the_chosen_kernel(it: Setting) -> Setting:
    return it.with_rules(
        "silu_and_mul",
        lambda rules: (rules[0].but(id="no-jit", forbid=("jit_cuda",), capabilities=None, vendors=None), *rules),
    )


@mutation("static", "candidate", "reason")
def fast_math_no_longer_forbidden(it: Setting) -> Setting:
    return it.with_rules("silu_and_mul", lambda rules: tuple(rule for rule in rules if not rule.forbid))


@mutation("static", "decided", "chosen")
def a_rule_that_holds_up_to_16_tokens_only(it: Setting) -> Setting:
    return it.with_rules(
        "fused_moe",
        lambda rules: _with_rule(rules, "fused-moe-unquantized", lambda r: r.but(tokens=(1, 16))),
    )


# -- kernels


def _capable(kernel: Kernel, make: Callable[[Any], Any]) -> Kernel:
    return kernel.but(
        requirements=tuple(
            OnCapability(make(one.capabilities), one.why) if isinstance(one, OnCapability) else one
            for one in kernel.requirements
        )
    )


@mutation("static", "candidate", "chosen")
def a_capability_widened(it: Setting) -> Setting:
    return it.with_kernel(
        "flashinfer.gemm_fp8_nt_groupwise[trtllm]", lambda k: _capable(k, lambda had: had | capabilities("12.0"))
    )


@mutation("static", "candidate", "chosen", "reason")
def a_kernel_made_portable_on_paper(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.rms_norm[jit_cuda]", lambda k: _capable(k, lambda had: ANY))


@mutation("static", "rejected", "chosen")
def a_capability_lost(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.rms_norm[jit_cuda]", lambda k: _capable(k, lambda had: had - {Capability(9, 0)}))


@mutation("static", "rejected", "chosen")
def a_kernel_removed(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.silu_and_mul[jit_cuda]", lambda k: None)


@mutation("static", "rejected", "chosen")
def a_kernel_renamed(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.relu2[triton]", lambda k: k.but(name="kernelmux.relu2[triton, new]"))


@mutation("static", "candidate")
def a_kernel_added(it: Setting) -> Setting:
    torch = it.kernel("kernelmux.topk[torch]")
    return replace(
        it, registry=type(it.registry)([*it.registry.ops(), *it.registry, torch.but(name="toy.topk[torch]")])
    )


@mutation("static", "evidence-lost")
def the_evidence_of_a_kernel_dropped(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.rms_norm[jit_cuda]", lambda k: k.but(evidence={}))


@mutation("static", "evidence-gained", better=True)
def evidence_claimed_for_a_gpu_that_had_none(it: Setting) -> Setting:
    return it.with_kernel(
        "kernelmux.fused_moe[triton]",
        lambda k: k.but(evidence={**k.evidence, **dict.fromkeys(capabilities("8.0", "9.0", "12.1"), "measured")}),
    )


@mutation("static", "rejected", "chosen")
def an_alignment_demanded_that_the_shape_has_not(it: Setting) -> Setting:
    return it.with_kernel(
        "kernelmux.gelu_and_mul[jit_cuda]",
        lambda k: k.but(requirements=(*k.requirements, Aligned("H", 3000, "a test"))),
    )


@mutation("static", "rejected", "chosen")
def a_package_range_that_no_release_is_in(it: Setting) -> Setting:
    def newer(kernel: Kernel) -> Kernel:
        return kernel.but(requirements=(*kernel.requirements, KnownIssue(ANY, {}, "it is broken", "wait")))

    return it.with_kernel("vllm.marlin_fp8[marlin]", newer)


@mutation("static", "reason")
def another_reason_added_to_a_rejection(it: Setting) -> Setting:
    return it.with_kernel(
        "deepgemm.fp8_gemm_nt[deepgemm]",
        lambda k: k.but(requirements=(*k.requirements, KnownIssue(ANY, {}, "it is broken", "wait"))),
    )


@mutation("static", "condition", "rejected", "chosen")
def a_package_that_must_be_there(it: Setting) -> Setting:
    bare = replace(it, packages=Packages({"triton": "3.6.0", "torch": "2.11.0"}))
    return bare.with_kernel(
        "kernelmux.topk[torch]", lambda k: k.but(requirements=(*k.requirements, NeedsPackage("toy", ">=1")))
    )


@mutation("static", "rejected", "chosen")
def a_promise_on_numerics_dropped(it: Setting) -> Setting:
    return it.with_kernel(
        "kernelmux.rms_norm[jit_cuda]",
        lambda k: k.but(numerics=k.numerics.but(promises=k.numerics.promises - {"batch_invariant"})),
    )


@mutation("static", "numerics", "condition")
def a_kernel_that_no_longer_says_it_is_weight_only(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.nvfp4_weight_only[jit_cuda]", lambda k: k.but(numerics=Numerics()))


@mutation("static", "config")
def a_kernel_without_its_tuned_tables(it: Setting) -> Setting:
    return it.with_kernel("kernelmux.fused_moe[triton]", lambda k: k.but(configs=None))


@mutation("static", "chosen")
def an_environment_without_flashinfer(it: Setting) -> Setting:
    return replace(it, packages=Packages({"triton": "3.6.0", "torch": "2.11.0", "vllm": "0.12.0"}))


# -- ops and devices


@mutation("static", "contract")
def a_tolerance_widened_ten_times(it: Setting) -> Setting:
    import dataclasses

    def wider(op: Any) -> Any:
        loose = {d: Tolerance(10 * t.rtol, t.atol, t.why) for d, t in op.tolerance.items()}
        return dataclasses.replace(op, tolerance=loose)

    return it.with_op("rms_norm", wider)


@mutation("static", "gone", "contract")
def a_scheme_dropped_from_an_op(it: Setting) -> Setting:
    import dataclasses

    return it.with_op("fp8_gemm", lambda op: dataclasses.replace(op, schemes=op.schemes - {"fp8_channel"}))


@mutation("static", "gone")
def an_op_removed(it: Setting) -> Setting:
    return it.with_op("relu2", lambda op: None)


@mutation("static", "gone")
def a_gpu_dropped_from_the_catalog(it: Setting) -> Setting:
    return it.with_devices(lambda had: [device for device in had if device.name != "h200"])


@mutation("static", "new")
def a_gpu_added_to_the_catalog(it: Setting) -> Setting:
    return it.with_devices(lambda had: [*had, catalog()["b300"]])


@mutation("static", "chosen", "rejected", "candidate")
def a_gpu_whose_capability_was_mistyped(it: Setting) -> Setting:
    def wrong(device: Any) -> Any:
        if device.name != "h200":
            return device
        return replace(device, capability=Capability(12, 0), arch="sm_120")

    return it.with_devices(lambda had: [wrong(device) for device in had])


# -- what a GPU measured, replayed


def _one(cells: list[Replayed], kernel: str, make: Callable[[Replayed], Replayed | None]) -> list[Replayed]:
    assert any(one.kernel == kernel for one in cells)
    made = [make(one) if one.kernel == kernel else one for one in cells]
    return [one for one in made if one is not None]


JIT = "kernelmux.rms_norm[jit_cuda]"


def _result(**fields: Any) -> Callable[[Replayed], Replayed]:
    return lambda one: replace(one, result=changed(one.result, **fields))


@mutation("replayed", "slower")
def a_kernel_20_percent_slower(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, lambda one: replace(one, us=1.2 * one.us))


@mutation("replayed", "slower")
def a_long_kernel_12_percent_slower(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, "kernelmux.fused_moe[triton]", lambda one: replace(one, us=1.12 * one.us))


@mutation("replayed", "slower")
def every_kernel_15_percent_slower(cells: list[Replayed]) -> list[Replayed]:
    return [replace(one, us=1.15 * one.us) for one in cells]


@mutation("replayed", "faster", better=True)
def a_kernel_30_percent_faster(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, lambda one: replace(one, us=0.7 * one.us))


@mutation("replayed", "wrong")
def a_kernel_whose_rows_are_too_far_off(cells: list[Replayed]) -> list[Replayed]:
    wrong = _result(status="wrong", explanation="wrong results: row 3 is 0.2 of its norm off", correct=False, error=8.2)
    return _one(cells, JIT, wrong)


@mutation("replayed", "accuracy")
def a_kernel_twice_as_far_off_inside_the_tolerance(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(error=0.62))


@mutation("replayed", "crash")
def a_kernel_that_crashed(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(status="crash", explanation="its process was killed by SIGSEGV"))


@mutation("replayed", "hang")
def a_kernel_that_hung(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(status="hang", explanation="no word for 60 s while it was timing M=64"))


@mutation("replayed", "error")
def a_kernel_that_raised(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(status="error", explanation="RuntimeError: no kernel image"))


@mutation("replayed", "not-run")
def a_kernel_that_was_not_run(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(status="skipped", explanation="no call of these sizes is known here"))


@mutation("replayed", "gone")
def a_kernel_that_is_not_there_any_more(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, lambda one: None)


@mutation("replayed", "capture-lost")
def a_kernel_that_waits_for_the_device(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(capture=False, notes=("capture: operation not permitted",)))


@mutation("replayed", "determinism-lost")
def a_kernel_with_atomics(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(deterministic=False))


@mutation("replayed", "memory")
def a_kernel_that_allocates_twice_as_much(cells: list[Replayed]) -> list[Replayed]:
    return _one(cells, JIT, _result(peak_bytes=2 << 20))


# -- what the compilers said


def _first(cells: list[Cell], **fields: Any) -> list[Cell]:
    one = cells[0]
    assert one.result is not None
    return [msgspec.structs.replace(one, result=changed(one.result, **fields)), *cells[1:]]


@mutation("compiled", "spills")
def a_kernel_that_spills(cells: list[Cell]) -> list[Cell]:
    return _first(cells, spills=64)


@mutation("compiled", "registers")
def a_kernel_with_twice_the_registers(cells: list[Cell]) -> list[Cell]:
    return _first(cells, registers=80)


@mutation("compiled", "shared")
def a_kernel_with_more_shared_memory(cells: list[Cell]) -> list[Cell]:
    return _first(cells, shared_bytes=4096)


@mutation("compiled", "error")
def a_kernel_that_no_longer_compiles(cells: list[Cell]) -> list[Cell]:
    return _first(cells, status="error", explanation="ptxas fatal: unresolved extern", registers=None)


@mutation("compiled", "not-run")
def a_compiler_that_no_longer_knows_the_gpu(cells: list[Cell]) -> list[Cell]:
    return _first(cells, status="unknown", explanation="NVRTC 12.4 does not know sm_100", registers=None)
