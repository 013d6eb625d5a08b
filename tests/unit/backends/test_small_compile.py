"""The small Triton ops compiled ahead for GPUs that are not here, and the numbers of their launches."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from kernelmux.backends.triton import small_rules, small_source
from kernelmux.backends.triton.declare_small import KERNELS
from kernelmux.backends.triton.small_compile import compile_launch, launch_of
from kernelmux.backends.triton.small_launch import Gpu
from kernelmux.backends.triton.small_rules import LONGEST, Tile
from kernelmux.contracts.activation_table import ACTIVATIONS
from kernelmux.device import Capability, catalog
from kernelmux.quant import Scheme
from kernelmux.registry import Conditional, Problem, Rejected
from kernelmux.registry.discovery import registry
from kernelmux.registry.lazy import load
from kernelmux.registry.packages import Packages

pytest.importorskip("triton", reason="Triton compiles")
pytest.importorskip("torch", reason="the launches are made for torch's tensors")

COMPILED = sorted(KERNELS[0].evidence)

# In a process of its own: compiling replaces Triton's driver for a while.
SCRIPT = """
import json, re, sys
from kernelmux.backends.triton.declare_small import KERNELS
from kernelmux.backends.triton.small_compile import compile_launch, launch_of
from kernelmux.backends.triton import jit_guard
from kernelmux.backends.triton.small_launch import Gpu
from kernelmux.backends.triton.stand_in import resources
from kernelmux.device import Capability
from kernelmux.registry.lazy import load
jit_guard.install()
for capability, shapes, names in json.loads(sys.argv[1]):
    for kernel in KERNELS:
        if kernel.name not in names:
            continue
        variant = load(kernel.bind).__self__
        for m, hidden, dtype, groups in shapes:
            if groups > 1 and kernel.op != "gated_rms_norm" or kernel.op == "silu_and_mul_fp8" and hidden % 128:
                continue
            for static in (False, True) if kernel.op == "rms_norm_fp8" else (False,):
                launch, dtypes = launch_of(variant.plan, kernel.op, Gpu(capability, 132), m, hidden, dtype,
                                           {"n_groups": groups}, static=static)
                compiled = compile_launch(launch, dtypes, Capability.parse(capability))
                registers, stack = resources(compiled.asm["cubin"])
                ptx = compiled.asm["ptx"]
                # The disassembler of Triton 3.6 reads no machine code of these two.
                sass = "" if capability in ("10.3", "12.1") else compiled.asm["sass"]
                loads = re.findall(r"\\bLDG\\.([\\w.]+)", sass) or [
                    f"{32 * int(lanes or 1)}" for lanes in re.findall(r"ld\\.global(?:\\.v(\\d))?\\.b32", ptx)
                ]
                print(json.dumps(dict(
                    kernel=kernel.name, capability=capability, hidden=hidden, dtype=dtype, registers=registers,
                    stack=stack, loads=loads, spills=len(re.findall(r"\\b(?:STL|LDL)\\b", sass)),
                    waits=ptx.count("griddepcontrol.wait"), starts=ptx.count("griddepcontrol.launch_dependents"),
                )))
"""


ALL = [kernel.name for kernel in KERNELS]
ONE_AN_OP = list({kernel.op: kernel.name for kernel in KERNELS}.values())


def compile_all(capability, shapes, names):
    wanted = [(capability, shapes, names)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(wanted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def width(load):
    found = re.search(r"\b(64|128|256)\b", load.replace(".", " "))
    return int(found[1]) if found else 32


@pytest.mark.slow
@pytest.mark.parametrize("capability", [str(c) for c in COMPILED])
def test_every_kernel_compiles_without_spills_and_loads_128_bits_at_a_time(capability):
    names = ALL if capability in ("8.0", "9.0") else ONE_AN_OP
    rows = compile_all(capability, [(4096, 2688, "bfloat16", 1)], names)
    assert {row["kernel"] for row in rows} == set(names)
    for row in rows:
        assert row["stack"] == 0 and row["spills"] == 0, row
        assert row["registers"] <= 128, row
        assert max(map(width, row["loads"])) == 128, row
        # All but scalars: a scale that is given is one number.
        assert all(width(load) == 128 for load in row["loads"] if "fp8" not in row["kernel"]), row
        assert row["waits"] == row["starts"] == (1 if Capability.parse(capability) >= (9, 0) else 0), row


@pytest.mark.slow
def test_other_sizes_and_dtypes_compile_without_spills_too():
    shapes = [
        (4096, 16384, "float16", 1), (1, 128, "float32", 1), (64, LONGEST, "bfloat16", 1),
        (64, LONGEST + 128, "float16", 1), (4096, 4096, "bfloat16", 8), (7, 2691, "bfloat16", 1),
    ]  # fmt: skip
    for row in compile_all("9.0", shapes, ONE_AN_OP):
        assert row["stack"] == 0 and row["spills"] == 0, row
        if row["hidden"] % 8 == 0:
            assert max(map(width, row["loads"])) == 128, row
        else:
            assert max(map(width, row["loads"])) == 32, row  # rows at odd addresses are read one by one


def test_a_gpu_that_the_assembler_does_not_know_is_rejected_in_words():
    thor = catalog()["jetson-thor"]
    kernel = next(k for k in KERNELS if k.op == "rms_norm")
    problem = Problem("rms_norm", Scheme.of(None), "bfloat16", {"M": 1, "H": 4096})
    op = registry().op("rms_norm")
    answer = kernel.judge(op, thor, Packages({"triton": "3.6.0", "torch": "2.11.0"}), problem)
    assert isinstance(answer, Rejected)
    assert "does not know sm_110" in answer.reason
    later = kernel.judge(op, thor, Packages({"triton": "3.7.0", "torch": "2.11.0"}), problem)
    assert isinstance(later, Conditional)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ALL)
def test_what_a_launch_passes_can_be_written_as_json(name, dtype, monkeypatch):
    """Triton does so before the hook that keeps it from compiling after freeze(): a function among them raises."""
    from triton import knobs

    said = []

    def skip(**about):
        said.append(json.loads(about["compile"]["specialization_data"]))
        return True  # nothing is compiled

    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", skip)
    for static in (False, True) if kernel.op == "rms_norm_fp8" else (False,):
        plan = load(kernel.bind).__self__.plan
        launch, dtypes = launch_of(plan, kernel.op, Gpu("9.0", 132), 4096, 2048, dtype, {"n_groups": 1}, static=static)
        compile_launch(launch, dtypes, Capability.parse("9.0"))
    assert said
    assert all(one["signature"] and len(one["constant_keys"]) == len(one["constant_vals"]) for one in said)


def test_every_activation_of_the_table_has_a_formula_here():
    import inspect

    from kernelmux.backends.triton import activation_kernels

    source = inspect.getsource(activation_kernels)
    assert all(f' if OP == "{a.name}"' in source for a in ACTIVATIONS)


def test_every_declared_function_is_there():
    for kernel in KERNELS:
        for spec in (kernel.load, kernel.bind, kernel.compile, kernel.warmup, kernel.source):
            assert callable(load(spec))
        assert load(kernel.bind).__self__.op == kernel.op


def test_the_compile_hook_names_each_kernel_once_and_fills_the_cache():
    hook = load(next(k for k in KERNELS if k.name == "kernelmux.rms_norm[triton]").compile)
    h200 = catalog()["h200"]
    every = list(hook(h200, "bfloat16", {}))
    assert len({job.what for job in every}) == len(every) >= 11
    (job,) = hook(h200, "float16", {"H": 384, "M": 4})
    job.run()
    assert job.run() is False  # it is in the cache now
    assert list(hook(h200, "bfloat16", {"H": 4096, "M": (1, 64)}))


# the numbers of a launch


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("hidden", [1, 7, 64, 128, 500, 512, 513, 2048, 2688, 5376, 16384, LONGEST, LONGEST + 1])
def test_a_tile_covers_its_rows_with_powers_of_two(hidden, itemsize):
    for tile in (
        *small_rules.row_geometries("rms_norm", hidden, itemsize),
        *small_rules.column_candidates(99, hidden, itemsize, 132),
    ):
        assert all(n & (n - 1) == 0 and n > 0 for n in (tile.rows, tile.block, tile.warps))
        assert tile.rows * tile.block <= 1 << 17
        assert tile.warps <= 32


@pytest.mark.parametrize("hidden", [128, 2688, 8192])
def test_how_a_row_is_summed_does_not_depend_on_how_many_there_are(hidden):
    tiles = {small_rules.row_tile("rms_norm", m, hidden, 2, "9.0", 132)[:3] for m in (1, 7, 300, 5000, 1 << 20)}
    assert len(tiles) == 1


def test_what_was_measured_is_taken_at_the_last_row_count_that_is_not_more(monkeypatch):
    table = {
        "9.0": {
            "rms_norm": {"2": {"96": {"tile": [8, 128, 4], "dealt": [[1, 1, 0], [4096, 3, 8]]}}},
            "relu2": {"2": {"96": {"tiles": [[1, 2, 128, 1, 1, 0], [64, 4, 128, 4, 2, 8]]}}},
        }
    }
    monkeypatch.setattr(small_rules, "_table", lambda: table)
    for function in (small_rules.row_tile, small_rules.column_tile):
        function.cache_clear()
    assert small_rules.row_tile("rms_norm", 4095, 96, 2, "9.0", 132) == Tile(8, 128, 4, 1, 0)
    assert small_rules.row_tile("rms_norm", 4096, 96, 2, "9.0", 132) == Tile(8, 128, 4, 3, 8)
    assert small_rules.column_tile("relu2", 100, 96, 2, "9.0", 132) == Tile(4, 128, 4, 2, 8)
    assert small_rules.row_tile("rms_norm", 4096, 96, 2, "8.0", 108) == small_rules.row_geometry("rms_norm", 96, 2)
    for function in (small_rules.row_tile, small_rules.column_tile):
        function.cache_clear()


def test_the_shipped_tiles_are_such_as_can_run():
    for op_tables in small_rules._table().values():
        for op, sizes in op_tables.items():
            for itemsize, widths in sizes.items():
                for hidden in widths:
                    pick = small_rules.row_tile if "norm" in op else small_rules.column_tile
                    for m in (1, 100, 1 << 16):
                        tile = pick(op, m, int(hidden), int(itemsize), "9.0", 132)
                        assert Counter(bin(tile.block))["1"] == 2 and 1 <= tile.stages <= 4, (op, hidden, tile)


def test_the_source_names_every_file_of_the_kernels():
    assert re.fullmatch("[0-9a-f]{16}", small_source.source_hash())


def test_a_bound_call_passes_addresses_and_falls_back_where_they_are_not_aligned():
    from kernelmux.backends.triton.small_launch import _template

    class At:
        def __init__(self, address):
            self.data_ptr = lambda: address

    started, dispatched, elsewhere = [], [], []
    make = _template(3, (0, None, 1, 2, None), True)
    device = [0]
    call = make(
        lambda *a: started.append(a), ("head",), ("tail",), 7, 0, lambda index: 90 + index, lambda: device[0],
        lambda *t: dispatched.append(t), lambda *t: elsewhere.append(t),
    )  # fmt: skip
    call(At(32), At(64), At(128))
    assert started == [(7, 1, 1, 90, "head", 32, 0, 64, 128, 0, "tail")]
    call(At(32), At(66), At(128))
    assert len(dispatched) == 1
    device[0] = 1
    call(At(32), At(64), At(128))
    assert len(elsewhere) == 1 and len(started) == 1
