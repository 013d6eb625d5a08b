"""The runtime of CUDA kernels: compiled for GPUs that are not here, cached, loaded and launched on a fake driver."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kernelmux.backends.jit_cuda import cache, compiler, driver, fast_math, launch, machine_code, needs
from kernelmux.device import Capability, catalog, resolve_device
from kernelmux.errors import (
    CompileFailed,
    ConfigFileError,
    FrozenError,
    LaunchFailed,
    MissingPackage,
    UsageError,
)
from kernelmux.quant import Scheme
from kernelmux.registry import discovery, frozen
from kernelmux.registry.decision import Conditional, Rejected
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem
from tests.unit.backends import fake_driver

ROOT = Path(__file__).parents[3]
PROBE = ROOT / "tests" / "data" / "jit_cuda" / "probe.cu"
CSRC = compiler.SOURCES

# setup-env installs CuPy and NVRTC on Linux: there these tests fail without them, and are not skipped.
if sys.platform != "linux":
    pytest.skip("CuPy has no wheels for this system", allow_module_level=True)

WANTED = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
SOMETIMES = ("sm_110", "sm_121")  # known to some releases of NVRTC
DTYPES = ("bf16", "fp16", "fp32")


def capability(arch: str) -> Capability:
    return Capability.parse(arch)


def defines(arch: str = "sm_90", dtype: str = "bf16") -> dict[str, str | int]:
    return {"DTYPE": dtype, "VEC_BYTES": compiler.vector_bytes(capability(arch))}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources of one's own: the shipped header and the probe."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    shutil.copy(CSRC / "common.cuh", folder)
    shutil.copy(PROBE, folder)
    monkeypatch.setattr(compiler, "SOURCES", folder)
    return folder


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own."""
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", False)
    return tmp_path / "cache" / "jit_cuda"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the call on, whatever needs the compiler fails."""

    def refuse() -> None:
        def compile_read(*_: object, **__: object) -> None:
            raise AssertionError("the compiler was called")

        monkeypatch.setattr(compiler, "compile_read", compile_read)

    return refuse


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def fake(fake_library: Path, monkeypatch: pytest.MonkeyPatch) -> fake_driver.FakeDriver:
    return fake_driver.install(fake_library, monkeypatch)


# ---- compiling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", [*WANTED, *SOMETIMES])
def test_header_compiles_for_every_gpu_with_full_width(arch: str, dtype: str, sources: Path) -> None:
    if arch in SOMETIMES and arch not in compiler.archs():
        with pytest.raises(CompileFailed, match=f"NVRTC {compiler.version()} cannot compile for {arch}: it knows sm_"):
            compiler.compile_source("probe", "probe", defines(arch, dtype), arch)
        return
    cubin = compiler.compile_source("probe", "probe", defines(arch, dtype), arch)
    width = compiler.vector_bytes(capability(arch))
    assert cubin.code[:4] == b"\x7fELF"
    assert cubin.kernel == "probe"
    assert 0 < cubin.registers <= 128
    assert cubin.shared_bytes >= 2 * 2 * 8 * 4
    assert cubin.spills == 0
    assert cubin.log == ""
    assert machine_code.spills(cubin.code, "probe") == 0
    assert machine_code.widest_load(cubin.code, "probe") == width
    assert machine_code.widest_store(cubin.code, "probe") == width
    early = machine_code.before_wait(cubin.code, "probe")
    assert (early == ()) is (capability(arch).major >= 9), early
    e4m3 = [each for each in machine_code.instructions(cubin.code, "probe") if "E4M3" in each]
    assert bool(e4m3) is (arch != "sm_80")


def test_every_arch_that_must_compile_is_known() -> None:
    assert set(WANTED) <= compiler.archs()


def test_widths_are_read_from_opcodes() -> None:
    widths = {
        "LDG.E": 4, "LDG.E.64": 8, "LDG.E.128.CONSTANT": 16, "LDG.E.NA.128": 16, "LDG.E.U16": 2, "LDG.E.U8": 1,
        "LDG.E.ENL2.256": 32, "STG.E.EF.ENL2.256": 32,
    }  # fmt: skip
    assert {opcode: machine_code._bytes(opcode) for opcode in widths} == widths


def test_disassembler_says_what_it_cannot_read() -> None:
    with pytest.raises(machine_code.Unreadable, match="nvdisasm cannot read the machine code of nothing"):
        machine_code.instructions(b"\x7fELF" + bytes(100), "nothing")


def test_vectors_are_32_bytes_from_10_on() -> None:
    known = {device.capability for device in catalog().values() if device.capability}
    assert {each for each in known if compiler.vector_bytes(each) == 32} == {each for each in known if each[0] >= 10}


def test_an_arch_that_nvrtc_does_not_know_is_named_with_a_remedy() -> None:
    with pytest.raises(CompileFailed, match=r"cannot compile for sm_999: .*sm_90.*pip install 'kernelmux\[cuda1\d\]'"):
        compiler.compile_source("norms", "norm_rows", {}, "sm_999")


def test_a_broken_source_shows_log_and_line(sources: Path) -> None:
    (sources / "broken.cu").write_text(
        '#include "common.cuh"\nextern "C" __global__ void broken(float* out) {\n  out[0] = no_such_thing;\n}\n'
    )
    with pytest.raises(CompileFailed) as caught:
        compiler.compile_source("broken", "broken", {"SOME": 1}, "sm_90")
    error = caught.value
    assert error.source == sources / "broken.cu"
    assert error.line == 3
    assert "no_such_thing" in error.log
    assert "undefined" in error.log
    assert "cannot compile broken of broken.cu for sm_90 (SOME=1)" in str(error)
    assert "broken.cu(3): error" in str(error)
    assert "  3 | out[0] = no_such_thing;" in str(error)


def test_a_fault_in_a_header_shows_the_line_of_the_header(sources: Path) -> None:
    with (sources / "common.cuh").open("a") as file:
        file.write("\nDEVICE float wrong() { return 1.0f }\n")
    number = len((sources / "common.cuh").read_text().splitlines())
    with pytest.raises(CompileFailed, match=rf"{number} \| DEVICE float wrong\(\)") as caught:
        compiler.compile_source("probe", "probe", defines(), "sm_90")
    assert caught.value.source == sources / "common.cuh"


def test_names_that_are_not_there(sources: Path) -> None:
    with pytest.raises(UsageError, match=r"no CUDA source 'nowhere.cu'.*There are: probe"):
        compiler.compile_source("nowhere", "probe", {}, "sm_90")
    with pytest.raises(CompileFailed, match=r"probe.cu has no kernel prob when compiled so; it has: probe"):
        compiler.compile_source("probe", "prob", defines(), "sm_90")


@pytest.mark.parametrize("cut", [0, 1])
def test_the_byte_that_the_binding_drops_is_put_back(cut: int, sources: Path) -> None:
    code = compiler.compile_source("probe", "probe", defines(), "sm_90").code
    assert compiler.whole(code[: len(code) - cut]) == code


def test_e4m3_by_hand_is_torchs_rounding(tmp_path: Path) -> None:
    """GPUs before 8.9 have no instruction for it. The function runs here as plain C++."""
    torch = pytest.importorskip("torch")
    found = re.search(r"DEVICE u8 e4m3_by_hand.*?\n}\n", (CSRC / "common.cuh").read_text(), re.DOTALL)
    assert found
    (tmp_path / "e4m3.cpp").write_text(
        "#include <cstring>\n#define DEVICE static\ntypedef unsigned char u8; typedef unsigned u32;\n"
        "static u32 __float_as_uint(float f) { u32 u; memcpy(&u, &f, 4); return u; }\n"
        "static float __uint_as_float(u32 u) { float f; memcpy(&f, &u, 4); return f; }\n"
        + found.group()
        + 'extern "C" void run(const float* x, u8* y, int n) { for (int i = 0; i < n; ++i) y[i] = e4m3_by_hand(x[i]); }'
    )
    library = tmp_path / "e4m3.so"
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", library, tmp_path / "e4m3.cpp"], check=True)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    near = every[~every.isnan()]
    between = (near[:, None] + near[None, :]).flatten() / 2  # the ties among them
    generator = torch.Generator().manual_seed(5)
    anything = torch.randint(-(2**31), 2**31 - 1, (400_000,), generator=generator).to(torch.int32).view(torch.float32)
    x = torch.cat([every, between, between.nextafter(near.max()), between.nextafter(near.min()), anything])
    y = torch.empty(x.shape, dtype=torch.uint8)
    ctypes.CDLL(str(library)).run(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), x.numel())
    number = ~x.isnan()
    assert y.view(torch.float8_e4m3fn)[~number].float().isnan().all()
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(y[number], expected[number])


# ---- what is not installed ------------------------------------------------------------------------------------------


def test_without_cupy_a_kernel_is_a_missing_package_and_no_import_error() -> None:
    code = """
import sys
sys.modules["cupy"] = sys.modules["cupy_backends"] = sys.modules["cupy_backends.cuda.libs.nvrtc"] = None
from importlib import import_module
from pathlib import Path
import kernelmux.backends.jit_cuda as here
for file in sorted(Path(here.__file__).parent.glob("[!_]*.py")):
    try:
        import_module(f"kernelmux.backends.jit_cuda.{file.stem}")
    except ModuleNotFoundError as error:
        assert error.name == "torch" and "declare" not in file.stem, (file, error)  # what runs may need torch
from kernelmux.backends.jit_cuda import compiler
from kernelmux.errors import MissingPackage
try:
    compiler.compile_source("norms", "norm_rows", {}, "sm_90")
except MissingPackage as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "Compiling a CUDA kernel needs CuPy, which is not installed." in done.stdout
    assert "pip install 'kernelmux[cuda1" in done.stdout


def test_without_nvrtc_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Binding:
        @staticmethod
        def getVersion() -> None:
            raise RuntimeError("CuPy failed to load libnvrtc.so.12")

    monkeypatch.setattr(compiler, "binding", compiler.cache(compiler.binding.__wrapped__))
    monkeypatch.setattr(compiler, "import_module", lambda name: Binding)
    monkeypatch.setattr(compiler, "_preload", lambda: None)
    with pytest.raises(MissingPackage, match=r"needs NVRTC, which is not installed.*kernelmux\[cuda1"):
        compiler.archs()


def test_without_a_driver_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-nowhere.so")
    monkeypatch.setattr(driver, "_cuda", driver.cache(driver._cuda.__wrapped__))
    with pytest.raises(MissingPackage, match="needs the NVIDIA driver"):
        driver.capability(0)


PROBLEM = Problem("rms_norm", Scheme.of(None), "bfloat16", {"H": 4096})
TWELVE = {"cupy-cuda12x": "14.2.0", "nvidia-cuda-nvrtc-cu12": "12.9.86"}
THIRTEEN = {"cupy-cuda13x": "14.2.0", "nvidia-cuda-nvrtc": "13.0.88"}


@pytest.mark.parametrize(
    ("device", "packages", "expected"),
    [
        ("h100-sxm", {}, ("package_missing", "CuPy (cupy-cuda12x or cupy-cuda13x), which is not installed", "cuda12")),
        ("h100-sxm", {"torch": "2.11.0+cu130"}, ("package_missing", "CuPy", "cuda13")),
        ("jetson-thor", {}, ("package_missing", "CuPy", "cuda13")),
        ("h100-sxm", {"cupy-cuda12x": "14.2.0"}, ("package_missing", "NVRTC, which cupy-cuda12x calls", "cuda12")),
        ("h100-sxm", {"cupy-cuda13x": "14.2.0"}, ("package_missing", "NVRTC, which cupy-cuda13x calls", "cuda13")),
        ("h100-sxm", {**TWELVE, "cupy-cuda12x": "", "cupy-cuda13x": "14.2.0"}, None),
        ("jetson-thor", TWELVE, ("package_version", "NVRTC 12.9.86 does not know 11.0: 13.0 is the first", "cuda13")),
        ("b200", {**TWELVE, "nvidia-cuda-nvrtc-cu12": "12.6.77"}, ("package_version", "12.8 is the first", "cuda12")),
        ("b300", {**TWELVE, "nvidia-cuda-nvrtc-cu12": "12.8.93"}, ("package_version", "12.9 is the first", "cuda12")),
        ("h100-sxm", TWELVE, None),
        ("b300", TWELVE, None),
        ("gb10", TWELVE, None),
        ("jetson-thor", THIRTEEN, None),
        ("h200", THIRTEEN, None),
    ],
)  # fmt: skip
def test_what_it_needs_is_said_with_a_remedy(
    device: str, packages: dict[str, str], expected: tuple[str, str, str] | None
) -> None:
    answer = needs.NeedsNvrtc().check(resolve_device(device), Packages(packages), PROBLEM)
    if expected is None:
        assert not isinstance(answer, (Rejected, Conditional)), answer
        return
    code, reason, extra = expected
    assert isinstance(answer, Rejected)
    assert answer.code == code
    assert reason in answer.reason
    assert answer.remedy == f"`pip install 'kernelmux[{extra}]'`"


def test_the_table_of_archs_is_what_this_nvrtc_says() -> None:
    own = tuple(map(int, compiler.version().split(".")))
    for text, first in needs.FIRST_NVRTC.items():
        knows = Capability.parse(text).arch in compiler.archs()
        assert knows is (own >= tuple(map(int, first.split(".")))), text


def test_every_nvidia_gpu_from_8_on_is_in_the_table() -> None:
    known = {str(device.capability) for device in catalog().values() if device.capability}
    assert {each for each in known if float(each) >= 8.0} <= set(needs.FIRST_NVRTC)


# ---- the cache on disk ----------------------------------------------------------------------------------------------


def test_a_second_call_needs_no_compiler(sources: Path, kept: Path, no_compiler: Any) -> None:
    first = cache.fetch("probe", "probe", defines(), "sm_90")
    assert cache.holds("probe", "probe", defines(), "sm_90")
    no_compiler()
    again = cache.fetch("probe", "probe", dict(reversed(defines().items())), "sm_90")
    assert (again.code, again.kernel, again.registers, again.spills, again.shared_bytes, again.log) == (
        first.code, first.kernel, first.registers, first.spills, first.shared_bytes, first.log,
    )  # fmt: skip
    assert len(list(kept.rglob("*.cubin"))) == 1


def test_what_decides_the_code_decides_the_key(sources: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.fetch("probe", "probe", defines(), "sm_90")

    def holds(**changed: Any) -> bool:
        given = {"defines": defines(), "arch": "sm_90", "fast": False} | changed
        return cache.holds("probe", "probe", given["defines"], given["arch"], fast=given["fast"])

    assert holds()
    assert not holds(arch="sm_80")
    assert not holds(defines=defines(dtype="fp16"))
    assert not holds(fast=True)
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "identity", lambda: "nvrtc 99.1")
        assert not holds()
    for name in ("probe.cu", "common.cuh"):
        text = (sources / name).read_text()
        (sources / name).write_text(text + "// changed\n")
        assert not holds()
        (sources / name).write_text(text)
        assert holds()


def test_a_changed_source_is_compiled_and_not_taken_from_the_cache(sources: Path, kept: Path) -> None:
    before = cache.fetch("probe", "probe", defines(), "sm_90")
    text = (sources / "probe.cu").read_text()
    (sources / "probe.cu").write_text(text.replace("448.0f / most", "224.0f / most"))
    assert cache.fetch("probe", "probe", defines(), "sm_90").code != before.code


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no head", "other head", "a folder"])
def test_a_damaged_file_is_compiled_anew(damage: str, sources: Path, kept: Path, no_compiler: Any) -> None:
    good = cache.fetch("probe", "probe", defines(), "sm_90")
    (file,) = kept.rglob("*.cubin")
    data = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
        with pytest.warns(UserWarning, match="compiled kernels are not kept"):
            assert cache.fetch("probe", "probe", defines(), "sm_90").code == good.code
        return
    file.write_bytes(
        {
            "cut": data[:-10],
            "flipped": data[:-500] + bytes((data[-500] ^ 1,)) + data[-499:],
            "empty": b"",
            "no head": data.partition(b"\n")[2],
            "other head": b'["kernel"]\n' + data.partition(b"\n")[2],
        }[damage]
    )
    assert cache.fetch("probe", "probe", defines(), "sm_90").code == good.code
    assert file.read_bytes() == data
    no_compiler()
    assert cache.fetch("probe", "probe", defines(), "sm_90").code == good.code


def test_a_cache_that_cannot_be_written_costs_no_kernel(
    sources: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="compiled kernels are not kept: cannot write"):
        assert cache.fetch("probe", "probe", defines(), "sm_90").code
    assert cache.fetch("probe", "probe", defines(), "sm_90").code  # said once


def test_code_of_an_nvrtc_that_lies_in_the_way_is_not_kept_under_the_packages_name(
    sources: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_packaged", lambda: "11.0.0")
    assert cache.fetch("probe", "probe", defines(), "sm_90").code
    assert not list(kept.rglob("*.cubin"))


def test_a_full_cache_needs_no_cupy(sources: Path, kept: Path) -> None:
    cache.fetch("probe", "probe", defines(), "sm_90")
    code = f"""
import sys
from pathlib import Path
from kernelmux.backends.jit_cuda import cache, compiler
compiler.SOURCES = Path({str(sources)!r})
cache.fetch("probe", "probe", {defines()!r}, "sm_90")
print(sorted(name for name in sys.modules if name.startswith(("cupy", "torch", "triton"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- loading and launching, on the fake driver ----------------------------------------------------------------------

GIVEN = (("DTYPE", "bf16"), ("VEC_BYTES", 16))


def test_a_function_is_loaded_once(sources: Path, kept: Path, fake: fake_driver.FakeDriver) -> None:
    found = launch.function("probe", "probe", GIVEN, 0)
    assert launch.function("probe", "probe", GIVEN, 0) is found
    assert fake.loads == 1
    assert (found.name, found.device_index, found.capability) == ("probe", 0, (9, 0))
    assert [path.parent.name for path in kept.rglob("*.cubin")] == ["sm_90"]


def test_a_gpu_that_is_not_there_is_named(sources: Path, kept: Path, fake: fake_driver.FakeDriver) -> None:
    with pytest.raises(LaunchFailed, match="cannot find GPU 3: CUDA_ERROR_SOMETHING: something is wrong"):
        launch.function("probe", "probe", GIVEN, 3)


def test_nothing_is_loaded_after_freeze(
    sources: Path, kept: Path, fake: fake_driver.FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launch.function("probe", "probe", GIVEN, 0)
    monkeypatch.setattr(frozen, "_frozen", True)
    assert launch.function("probe", "probe", GIVEN, 0) is found
    with pytest.raises(FrozenError, match=r"load the CUDA kernel probe \(DTYPE=fp16\) onto GPU 0.*km.warmup"):
        launch.function("probe", "probe", (("DTYPE", "fp16"),), 0)
    assert fake.loads == 1


def test_nothing_is_loaded_during_a_capture(
    sources: Path, kept: Path, fake: fake_driver.FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "is_capturing", lambda: True)
    with pytest.raises(FrozenError, match="graph is being captured and this would load the CUDA kernel probe"):
        launch.function("probe", "probe", GIVEN, 0)
    assert fake.loads == 0


def a_function(name: str = "k") -> driver.Function:
    return driver.load(b"\x7fELF", name, 0)


def test_a_launch_hands_over_what_was_given(fake: fake_driver.FakeDriver) -> None:
    function = a_function()
    launcher = launch.Launcher(function, "PiqfP", block=256, shared=1024)
    fake.set(argument_count=5)
    for call in (launcher, launcher.call):
        call(7, 0x7F0000001230, 2**63 + 5, -3, -(2**40), 0.5, 0)
        assert fake.values("PiqfP") == (2**63 + 5, -3, -(2**40), 0.5, 0)
        config = fake.config
        assert (list(config.grid), list(config.block)) == ([7, 1, 1], [256, 1, 1])
        assert (config.shared_bytes, config.stream) == (1024, 0x7F0000001230)
        assert ctypes.c_void_p.in_dll(fake.library, "last_function").value == function.handle
    assert fake.launches == 2


@pytest.mark.parametrize("varies", ["", "0", "4", "024", "13", "01234"])
def test_a_bound_launch_writes_only_what_varies(varies: str, fake: fake_driver.FakeDriver) -> None:
    values = (11, -3, -(2**40), 0.5, 12)
    new = (2**50, -7, 2**41, 1.25, 2**51)
    places = [int(place) for place in varies]
    call = launch.Launcher(a_function(), "PiqfP", block=32).bind(
        5, *(... if i in places else value for i, value in enumerate(values))
    )
    fake.set(argument_count=5)
    call(99, *(new[i] for i in places))
    assert fake.values("PiqfP") == tuple(new[i] if i in places else value for i, value in enumerate(values))
    assert (list(fake.config.grid), list(fake.config.block), fake.config.stream) == ([5, 1, 1], [32, 1, 1], 99)
    call(0, *(new[i] for i in places))
    assert fake.config.stream is None


def test_a_kernel_without_arguments(fake: fake_driver.FakeDriver) -> None:
    launch.Launcher(a_function(), "", block=32)(1, 0)
    launch.Launcher(a_function(), "", block=32).bind(2)(0)
    assert fake.launches == 2
    assert list(fake.config.grid) == [2, 1, 1]


def test_an_empty_grid_launches_nothing(fake: fake_driver.FakeDriver) -> None:
    launch.Launcher(a_function(), "P", block=32)(0, 0, 1)
    assert fake.launches == 0


@pytest.mark.parametrize(("major", "minor", "asked", "has"), [
    (8, 0, True, False), (8, 9, True, False), (9, 0, True, True), (9, 0, False, False), (10, 0, True, True),
    (12, 0, True, True),
])  # fmt: skip
def test_overlap_is_asked_for_from_9_on(
    major: int, minor: int, asked: bool, has: bool, fake: fake_driver.FakeDriver
) -> None:
    fake.set(major=major, minor=minor)
    launcher = launch.Launcher(a_function(), "P", block=32, pdl=asked)
    assert launcher.pdl is has
    programmatic_stream_serialization = (6, 1)
    for call in (lambda: launcher(1, 0, 5), lambda: launcher.bind(1, ...)(0, 5)):
        call()
        assert fake.attribute == (programmatic_stream_serialization if has else (0, 0))


def test_threads_never_share_a_block_of_parameters(fake: fake_driver.FakeDriver) -> None:
    """Each launch gives its stream and all its values the same number; a mixture shows in the driver."""
    launcher = launch.Launcher(a_function(), "PPPP", block=32)
    bound = launcher.bind(1, ..., ..., ..., ...)
    fake.set(argument_count=4, all_equal=1, mixed=0)
    ready = threading.Barrier(8)

    def work(number: int) -> None:
        ready.wait()
        for i in range(3000):
            value = number * 100_000 + i + 1
            (launcher.call(1, value, value, value, value, value) if i % 2 else bound(value, value, value, value, value))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        fake.set(all_equal=0)
    assert (fake.launches, fake.mixed) == (8 * 3000, 0)


def test_a_thread_without_the_gpus_context_launches_all_the_same(fake: fake_driver.FakeDriver) -> None:
    launcher = launch.Launcher(a_function(), "P", block=32)
    fake.set(needs_context=1, argument_count=1)
    launcher(1, 5, 77)
    assert (fake.launches, fake.values("P")) == (1, (77,))
    assert not driver.is_current(0)  # as it was


def test_a_refused_launch_is_told_and_the_next_one_works(fake: fake_driver.FakeDriver) -> None:
    launcher = launch.Launcher(a_function("norm"), "P", block=32)
    fake.set(refuse=719)
    with pytest.raises(LaunchFailed, match=r"launch norm on GPU 0 \(32 threads a block\): CUDA_ERROR_SOMETHING: som"):
        launcher(1, 0, 1)
    fake.set(refuse=0)
    with pytest.raises(Exception, match=r"required argument is not an integer|argument"):
        launcher(1, 0, "no number")
    launcher(1, 0, 1)
    assert fake.launches == 1


def test_what_cannot_be_launched_is_refused_when_it_is_made(fake: fake_driver.FakeDriver) -> None:
    fake.set(largest_block=512)
    function = a_function("norm")
    with pytest.raises(UsageError, match="unknown letter d in the signature 'Pd' of norm"):
        launch.Launcher(function, "Pd", block=32)
    with pytest.raises(UsageError, match="norm runs with 1 to 512 threads a block, not 1024"):
        launch.Launcher(function, "P", block=1024)
    with pytest.raises(UsageError, match="norm takes 2 arguments, not 1"):
        launch.Launcher(function, "PP", block=32).bind(1, 2)
    with pytest.raises(UsageError, match="cannot be launched with 0 blocks"):
        launch.Launcher(function, "P", block=32).bind(0, 2)
    fake.set(largest_block=1024)


def test_more_than_48_kb_of_shared_memory_is_asked_for(fake: fake_driver.FakeDriver) -> None:
    launch.Launcher(a_function(), "P", block=32, shared=48 * 1024)
    assert fake.shared_asked == 0
    launch.Launcher(a_function(), "P", block=32, shared=100_000)
    assert fake.shared_asked == 100_000


def test_code_that_the_driver_refuses(fake: fake_driver.FakeDriver) -> None:
    with pytest.raises(LaunchFailed, match="cannot load k onto GPU 0"):
        driver.load(b"not code", "k", 0)


# ---- fast math ------------------------------------------------------------------------------------------------------

ENTRY = {
    "arch": "sm_90", "dtype": "bfloat16", "source": "probe", "kernel": "probe", "gain_percent": 3.5,
    "evidence": "benchmarks/results/x.json", "kernels": ["kernelmux.rms_norm[jit_cuda, fast]"],
}  # fmt: skip


def written(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"entries": entries}))  # JSON is YAML
    return path


def test_shipped_fast_math_has_evidence_and_kernels_that_declare_it() -> None:
    declared = {kernel.name: kernel for kernel in discovery.registry()}
    for entry in fast_math.entries():
        assert (ROOT / entry.evidence).is_file(), entry
        assert (CSRC / f"{entry.source}.cu").is_file(), entry
        assert entry.kernels
        for name in entry.kernels:
            assert declared[name].numerics.fast_math, f"{name} must declare fast_math"
            assert "no_fast_math" not in declared[name].numerics.promises


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain_percent": 2.9}, "gain_percent: is 2.9: below 3 the exact kernel is kept"),
        ({"arch": "sm_100"}, "arch: is sm_100: fast math is for sm_80 to sm_90 only"),
        ({"arch": "gfx942"}, "arch: is gfx942"),
        ({"evidence": None}, "evidence: is None"),
        ({"more": 1}, "must have exactly these keys"),
    ],
)
def test_an_entry_that_no_policy_allows(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=re.escape(message)):
        fast_math.load(written(tmp_path / "fast_math.yaml", ENTRY | change))


def test_fast_math_is_by_arch_dtype_and_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fast_math.load(written(tmp_path / "fast_math.yaml", ENTRY))
    monkeypatch.setattr(fast_math, "entries", lambda: found)
    bf16, fp16 = {"DTYPE": "bf16"}, {"DTYPE": "fp16"}
    assert fast_math.wanted("probe.cu", "probe", bf16, Capability(9, 0))
    assert not fast_math.wanted("probe", "probe", fp16, Capability(9, 0))
    assert not fast_math.wanted("probe", "other", bf16, Capability(9, 0))
    assert not fast_math.wanted("probe", "probe", bf16, Capability(8, 9))
    monkeypatch.setattr(fast_math, "entries", lambda: (fast_math.Entry(**ENTRY | {"arch": "sm_100"}),))
    assert not fast_math.wanted("probe", "probe", bf16, Capability(10, 0))


def test_fast_math_reaches_the_compiler(sources: Path, kept: Path, fake: fake_driver.FakeDriver) -> None:
    assert "--use_fast_math" in compiler.options({}, "sm_90", fast=True)
    assert "--use_fast_math" not in compiler.options({}, "sm_90")
    exact = launch.function("probe", "probe", GIVEN, 0)
    assert launch.function("probe", "probe", GIVEN, 0, fast=False) is not exact
    assert len(list(kept.rglob("*.cubin"))) == 1  # the policy said no: the same code
    launch.function("probe", "probe", GIVEN, 0, fast=True)
    assert len(list(kept.rglob("*.cubin"))) == 2
