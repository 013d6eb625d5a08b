"""NVFP4 layers of ModelOpt's and of compressed-tensors' checkpoints are the same layers, for every kernel."""

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import nvfp4_math  # noqa: E402
from kernelmux.contracts.nvfp4_checkpoint import from_checkpoint, fused  # noqa: E402
from kernelmux.device import catalog  # noqa: E402
from kernelmux.errors import BadShape, KernelmuxError, UsageError  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

N, K, LAYER = 128, 256, "model.layers.0.mlp.up_proj"


def checkpoints(w_global=2.0**-9, input_scale=2.0**-6, prefix=f"{LAYER}.", n=N, seed=0):
    """(ModelOpt's tensors, compressed-tensors', the dequantized weight) of one layer."""
    weight = torch.randn(n, K, generator=torch.Generator().manual_seed(seed))
    packed, scale = nvfp4_math.quantize_reference(weight, torch.tensor(w_global))
    modelopt = {"weight": packed, "weight_scale": scale, "weight_scale_2": torch.tensor(w_global)}
    compressed = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.tensor([1 / w_global])}
    if input_scale is not None:
        modelopt["input_scale"] = torch.tensor(input_scale)
        compressed["input_global_scale"] = torch.tensor([1 / input_scale])
    exact = nvfp4_math.dequantize(packed, scale, torch.tensor(w_global))
    return *({prefix + k: v for k, v in each.items()} for each in (modelopt, compressed)), exact


def same(one, two):
    """Whether two prepared weights hold the same bytes."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two


@pytest.mark.parametrize("input_scale", [2.0**-6, None])
def test_both_forms_run_to_the_same_result(input_scale):
    modelopt, compressed, exact = checkpoints(input_scale=input_scale)
    x = torch.randn(5, K).bfloat16()
    scheme = "nvfp4" if input_scale else "nvfp4_w4a16"
    chosen = km.select_backend("nvfp4_gemm", device="cpu", quant=scheme, shape={"N": N, "K": K})
    results = [chosen(x, chosen.prepare(**from_checkpoint(form, LAYER))) for form in (modelopt, compressed)]
    assert torch.equal(*results)
    away = (results[0].float() - x.float() @ exact.T).norm() / (x.float() @ exact.T).norm()
    assert away < (0.2 if input_scale else 0.01)


def test_a_global_scale_whose_inverse_is_rounded_differs_in_its_last_place_only():
    modelopt, compressed, _ = checkpoints(w_global=1 / 2688, input_scale=0.0123)
    one, two = (from_checkpoint(form, LAYER) for form in (modelopt, compressed))
    for name in ("w_global_scale", "input_scale"):
        assert torch.allclose(one[name], two[name], rtol=2.0**-23, atol=0)
    assert one["w"] is modelopt[f"{LAYER}.weight"] and two["w_scale"] is compressed[f"{LAYER}.weight_scale"]


@pytest.mark.parametrize("scheme", ["nvfp4", "nvfp4_w4a16"])
def test_every_kernel_prepares_the_same_weights_of_both_forms(scheme):
    """Selection, preparation and launch share one kernel, so its layout is the only one that is ever made."""
    forms = [
        from_checkpoint(form, LAYER) for form in checkpoints(input_scale=2.0**-6 if scheme == "nvfp4" else None)[:2]
    ]
    prepared = []
    for kernel in registry().kernels("nvfp4_gemm"):
        if kernel.prepare is None:
            continue
        try:
            one, two = (load(kernel.prepare)(catalog()["h100-sxm"], **form) for form in forms)
        except KernelmuxError:  # its library is not installed, or it wants the input scale that W4A16 lacks
            continue
        assert same(one, two), kernel.name
        prepared.append(kernel.name)
    assert {"kernelmux.nvfp4_gemm[torch]", "kernelmux.nvfp4_weight_only[triton]"} <= set(prepared)


def test_the_form_is_read_off_the_names_or_told():
    modelopt, compressed, _ = checkpoints()
    both = {**modelopt, **compressed}
    with pytest.raises(UsageError, match="has no NVFP4 weight"):
        from_checkpoint(both, LAYER)
    for packing in ("modelopt", "compressed-tensors"):
        assert float(from_checkpoint(both, LAYER, packing=packing)["w_global_scale"]) == 2.0**-9
    bare, _, _ = checkpoints(prefix="")
    assert float(from_checkpoint(bare)["input_scale"]) == 2.0**-6
    assert (
        from_checkpoint(bare, packing=Scheme.of({"quantization": {"quant_algo": "NVFP4"}}).packing)["w"].shape[0] == N
    )


@pytest.mark.parametrize(
    ("change", "words", "error"),
    [
        ({"weight_scale_2": None}, "has no NVFP4 weight", UsageError),
        ({"weight_scale": None}, "lacks weight_scale, which modelopt stores", UsageError),
        ({"weight_scale_2": torch.ones(2)}, "one number; it has 2", UsageError),
        ({"weight_scale_2": torch.tensor(float("nan"))}, "must be a positive, finite number", BadShape),
        ({"input_scale": torch.tensor(float("inf"))}, "must be a positive, finite number", BadShape),
        ({"weight_scale": torch.zeros(N, K // 8).to(torch.float8_e4m3fn)}, f"= [{N}, {K // 16}]", BadShape),
        ({"weight": torch.zeros(N, K // 2 - 4, dtype=torch.uint8)}, "must be a multiple of 16", BadShape),
    ],
    ids=["no global scale", "no scales", "two global scales", "nan", "inf", "scales of another group", "K"],
)
def test_what_does_not_fit_is_named(change, words, error):
    modelopt, _, _ = checkpoints()
    changed = {**modelopt, **{f"{LAYER}.{name}": value for name, value in change.items()}}
    with pytest.raises(error) as said:
        from_checkpoint({name: value for name, value in changed.items() if value is not None}, LAYER)
    assert words in str(said.value)


def test_an_inverse_of_zero_is_refused():
    _, compressed, _ = checkpoints()
    compressed[f"{LAYER}.weight_global_scale"] = torch.zeros(1)
    with pytest.raises(BadShape, match="the inverse of model.layers.0.mlp.up_proj.weight_global_scale"):
        from_checkpoint(compressed, LAYER)


def test_parts_of_a_fused_layer_are_stacked():
    gate = from_checkpoint(checkpoints(prefix="", input_scale=0.25)[0])
    up = from_checkpoint(checkpoints(prefix="", input_scale=0.5, n=64, seed=1)[0])
    whole = fused([gate, up])
    assert whole["w"].shape == (N + 64, K // 2) and float(whole["input_scale"]) == 0.5
    x = torch.randn(3, K).bfloat16()
    apart = [km.ops.nvfp4_gemm(x, **{**part, "input_scale": None}) for part in (gate, up)]
    assert torch.equal(km.ops.nvfp4_gemm(x, **{**whole, "input_scale": None}), torch.cat(apart, dim=1))


def test_parts_that_are_not_one_layer_are_refused():
    gate = from_checkpoint(checkpoints(prefix="")[0])
    with pytest.raises(UsageError, match="different global scales"):
        fused([gate, from_checkpoint(checkpoints(prefix="", w_global=2.0**-8)[0])])
    with pytest.raises(UsageError, match="not one layer"):
        fused([gate, from_checkpoint(checkpoints(prefix="", input_scale=None)[0])])
    with pytest.raises(UsageError, match="no part"):
        fused([])
