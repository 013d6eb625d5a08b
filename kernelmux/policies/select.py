"""select_backend: gather what a choice needs, choose once, and answer from a dictionary from then on.

A cached answer is dropped when an override, an environment variable or anything counted by ``registry.epoch`` changes.
What another process writes (a table, a measurement) is seen after ``refresh()`` or in a fresh process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

from kernelmux.device import Device, resolve_device
from kernelmux.errors import BadShape, DeviceNotFound, MissingPackage, NoKernel, StoreError, UsageError
from kernelmux.policies import standing
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import Explicit, check_backend, resolve
from kernelmux.policies.selection import Selection
from kernelmux.quant import Scheme
from kernelmux.registry import discovery, epoch, frozen
from kernelmux.registry import packages as installed_packages
from kernelmux.registry.config import ConfigChoice
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.lazy import load
from kernelmux.registry.measurement import Measurement
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem, dtype_name
from kernelmux.registry.registry import Registry
from kernelmux.registry.value import Value

ANY_OP_VARIABLE = "KERNELMUX_BACKEND"
POLICY_VARIABLE = "KERNELMUX_POLICY"
_LIMIT = 8192  # cached selections: about 10 MB when every token count of a long prefill has been asked for

# A selection, and the environment it holds for: the op's variable and its value, then the values of the other four.
_cache: dict[tuple[Any, ...], tuple[Selection, Any, Any, Any, Any, Any, Any]] = {}
_devices: dict[str, Device] = {}
_policies: dict[str, Policy] = {}  # by path
_layered: dict[tuple[Any, ...], Policy] = {}  # op, the caller's policy, that of the environment -> all laid over
_measurements: dict[tuple[str, str], tuple[Measurement, ...]] = {}
_configs: dict[tuple[Any, ...], ConfigChoice | None] = {}
_overrides: ContextVar[tuple[tuple[str, str], ...] | None] = ContextVar("kernelmux_overrides", default=None)
_context = _overrides.get

# os.environ encodes its key at every look-up, 1 us a call; its own dictionary of encoded values does not.
_environment: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_encode = getattr(os.environ, "encodekey", lambda name: name)
_ANY_OP_KEY, _CONFIG_KEY, _CACHE_KEY, _POLICY_KEY = map(
    _encode, (ANY_OP_VARIABLE, "KERNELMUX_CONFIG_DIR", "KERNELMUX_CACHE_DIR", POLICY_VARIABLE)
)
_variable = _environment.get

override_in_force = _overrides.get
"""What ``override`` blocks ask for in this thread or task; None for nothing."""

environment_without = _environment.keys().isdisjoint
"""Whether none of these ``variables`` is set."""

_folders: tuple[Any, Any] = (_variable(_CONFIG_KEY), _variable(_CACHE_KEY))


def select_backend(
    op: str,
    *,
    device: Any = None,
    quant: Any = None,
    dtype: Any = None,
    shape: Mapping[str, Any] | None = None,
    activation: str | None = None,
    backend: str | None = None,
    demands: Iterable[str] = (),
    policy: Policy | str | Path | None = None,
    packages: Packages | None = None,
) -> Selection:
    """Choose the kernel for an op on a device, present or not.

    ``device``: anything ``resolve_device`` reads; None is the live GPU, or the CPU where there is none. ``quant``:
    None, a scheme name, a Scheme or a model's quantization config. ``shape``: axis -> size, the token axis also as a
    pair (lowest, highest). ``backend``: honoured, or NoKernel. ``demands``: promises on numerics the kernel must
    make. ``policy``: rules laid over those of the file KERNELMUX_POLICY names, and those over the built-in ones; a path
    or a Policy. ``packages``: what to take for installed.

    Raises UsageError (UnknownOp, UnknownDevice, UnknownScheme, BadShape), NoKernel, and FrozenError after
    ``freeze()`` where the answer would need a file.
    """
    key: tuple[Any, ...] | None
    try:
        if shape:
            key = (
                op,
                device,
                quant,
                dtype,
                activation,
                backend,
                demands,
                policy,
                packages,
                _context(),
                *shape,
                *shape.values(),
            )
        else:
            key = (op, device, quant, dtype, activation, backend, demands, policy, packages, _context())
        hit = _cache.get(key)
    except (TypeError, AttributeError):  # a quantization config, a list: no key
        key, hit = None, None
    if (
        hit is not None
        and _variable(hit[1]) == hit[2]
        and _variable(_ANY_OP_KEY) == hit[3]
        and _variable(_CONFIG_KEY) == hit[4]
        and _variable(_CACHE_KEY) == hit[5]
        and _variable(_POLICY_KEY) == hit[6]
    ):
        return hit[0]
    return _select(key, op, device, quant, dtype, shape or {}, activation, backend, demands, policy, packages)


def _select(
    key: tuple[Any, ...] | None,
    op: str,
    device: Any,
    quant: Any,
    dtype: Any,
    shape: Mapping[str, Any],
    activation: str | None,
    backend: str | None,
    demands: Iterable[str],
    policy: Policy | str | Path | None,
    packages: Packages | None,
) -> Selection:
    global _folders
    folders = (_variable(_CONFIG_KEY), _variable(_CACHE_KEY))
    if folders != _folders:  # other tables, another journal
        _forget_choices()
        _folders = folders
    before = epoch.value
    registry = _registry()
    registry.op(op)
    if not isinstance(shape, Mapping):
        raise BadShape(f"shape maps axes to sizes, as in dict(M=64); {shape!r} does not.")
    if isinstance(demands, str):
        raise UsageError(f"demands is a collection of words, not one word: write demands=({demands!r},).")
    here = _device(device)
    problem = Problem(op, Scheme.of(quant), dtype_name(dtype), shape, activation, frozenset(demands))
    selection = _Question(op, here, packages, problem, policy, _explicit(op, backend)).answer()
    if key is not None and not _follows_current(device) and before == epoch.value and not _passing(selection):
        if len(_cache) >= _LIMIT:
            _cache.clear()  # what is asked for again is resolved again, from memory
        variable = _encode(op_variable(op))
        _cache[key] = (
            selection,
            variable,
            _variable(variable),
            _variable(_ANY_OP_KEY),
            *folders,
            _variable(_POLICY_KEY),
        )
    return selection


class _Question(Value):
    """What a Selection answers, so that it can be asked again once a kernel has failed its check."""

    op: str
    device: Device
    packages: Packages | None
    problem: Problem
    policy: Policy | str | Path | None
    explicit: Explicit | None

    def answer(self) -> Selection:
        registry = _registry()
        selection = resolve(
            self.op,
            self.device,
            _packages() if self.packages is None else self.packages,
            self.problem,
            policy=_policy(registry, self.op, self.policy),
            registry=registry,
            override=self.explicit,
            measurements=_measured(self.op, self.device),
            configs=_config,
            source_of=_source,
            doubt=standing.doubts(self.device),
        )
        selection._state["again"] = self.answer
        return selection

    def __deepcopy__(self, memo: object) -> _Question:
        return self


def _passing(selection: Selection) -> bool:
    """Whether it was made in a capture without kernels that could not be checked there: not to be remembered."""
    return any(other.code == "ungated" for other in selection.rejected) and not frozen.is_frozen()


def drop(unwanted: Callable[[Selection], bool]) -> None:
    """Answer no question with such a Selection any more; tables and measurements stay in memory."""
    for key in [key for key, entry in _cache.items() if unwanted(entry[0])]:
        del _cache[key]


def _follows_current(device: Any) -> bool:
    """Whether the spec means another GPU once the process changes its current one: not to be remembered."""
    return device is None or str(device).strip().lower() in ("cuda", "hip", "gpu")


def op_variable(op: str) -> str:
    """The environment variable that chooses the backend of one op: ``KERNELMUX_RMS_NORM_BACKEND``."""
    return f"KERNELMUX_{op.upper()}_BACKEND"


def variables(op: str) -> tuple[Any, ...]:
    """The environment variables a choice for this op depends on, as ``environment_without`` takes them."""
    return (_encode(op_variable(op)), _ANY_OP_KEY, _CONFIG_KEY, _CACHE_KEY, _POLICY_KEY)


def asked(names: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What ``override`` blocks and these ``variables`` ask for, as a key; None for nothing."""
    chosen = _context()
    if chosen is None and environment_without(names):
        return None
    return (chosen, *map(_variable, names))


def _explicit(op: str, backend: str | None) -> Explicit | None:
    """Argument over context manager over environment."""
    if backend is not None:
        return Explicit(backend)
    for name, chosen in reversed(_overrides.get() or ()):
        if name == op:
            return Explicit(chosen, f"km.override({op!r}, backend={chosen!r})")
    for variable in (op_variable(op), ANY_OP_VARIABLE):
        chosen_by_user = os.environ.get(variable, "").strip()
        if chosen_by_user:
            return Explicit(chosen_by_user, f"{variable}={chosen_by_user} in the environment")
    return None


def _registry() -> Registry:
    if not discovery.is_discovered():
        frozen.guard("look for kernels")
    return discovery.registry()


def _device(spec: Any) -> Device:
    if isinstance(spec, Device):
        return spec
    text = None if spec is None else str(spec)
    found = _devices.get(text) if text is not None else None
    if found is not None:
        return found
    frozen.guard(f"look up the device {text or 'of this machine'}")
    if spec is None:
        try:
            found = resolve_device("cuda")
        except DeviceNotFound:
            return resolve_device("cpu")
    else:
        found = resolve_device(spec)
    if not _follows_current(spec):
        _devices[str(text)] = found
    elif found.live and found.index is not None:
        _devices.setdefault(f"cuda:{found.index}", found)  # what tensors there call it
    return found


def _packages() -> Packages:
    return Packages.installed()


def _policy(registry: Registry, op: str, own: Policy | str | Path | None) -> Policy:
    """The caller's rules over those of the environment over the built-in ones."""
    theirs = os.environ.get(POLICY_VARIABLE, "").strip()
    base = Policy.builtin(op)
    if own is None and not theirs:
        return base
    given = own if isinstance(own, Policy) else None if own is None else str(own)
    key = (op, given, theirs)
    found = _layered.get(key)
    if found is None:
        for layer in (theirs or None, given):
            if layer is not None:
                base = _checked(layer, registry, op).over(base, op)
        found = _layered[key] = base
    return found


def _checked(layer: Policy | str, registry: Registry, op: str) -> Policy:
    """The policy, read if it is a path, its words checked against the registry."""
    if isinstance(layer, str):
        policy = _policies.get(layer)
        if policy is None:
            frozen.guard(f"read the policy {layer}")
            policy = _policies[layer] = Policy.load(layer)
    else:
        policy = layer
    from kernelmux.policies.lint import check_words

    check_words(policy, registry, op)
    return policy


def _measured(op: str, device: Device) -> tuple[Measurement, ...]:
    """What the journal holds for this op on this device; nothing where there is no journal."""
    key = (op, device.table_name)
    found = _measurements.get(key)
    if found is None:
        frozen.guard("read the journal of measurements")
        from kernelmux.store.paths import journal_path

        path = journal_path()
        found = _measurements[key] = _read_journal(path, *key) if path.exists() else ()
    return found


def _read_journal(path: Path, op: str, device: str) -> tuple[Measurement, ...]:
    from kernelmux.store.journal import Journal

    try:
        with Journal(path, read_only=True) as journal:
            return tuple(journal.measurements(op, device))
    except StoreError as error:  # a damaged journal costs its measurements, not the selection
        import warnings

        warnings.warn(f"selecting without measurements: {error}", RuntimeWarning, stacklevel=2)
        return ()


def _config(kernel: Kernel, device: Device, packages: Packages, problem: Problem) -> ConfigChoice | None:
    """The tables for this problem, whatever its token count; looked up once."""
    axis = discovery.registry().op(problem.op).token_axis
    shape = tuple(sorted((name, size) for name, size in problem.shape.items() if name != axis))
    key = (kernel.name, device, packages, problem.scheme, problem.dtype, problem.activation, shape)
    try:
        return _configs[key]
    except KeyError:
        frozen.guard(f"look up a tuned table for {problem.brief()} on {device.name}")
    provider = load(str(kernel.configs))
    choice: ConfigChoice | None = provider(device, packages, problem)
    _configs[key] = choice
    return choice


def _source(kernel: Kernel) -> str:
    """The identity of the kernel's code, as installed here."""
    return str(load(str(kernel.source))())


def _forget_choices() -> None:
    _cache.clear()
    _configs.clear()
    _measurements.clear()
    _layered.clear()


epoch.listen(_forget_choices)
epoch.listen_op(lambda op: drop(lambda selection: selection.op.name == op))


def refresh() -> None:
    """See what changed outside this process: packages, kernels, tables, measurements, policy files, devices."""
    frozen.guard("read files again")
    installed_packages.forget()
    standing.forget()
    discovery.forget()
    _devices.clear()
    _policies.clear()
    _layered.clear()
    epoch.bump()


class override:  # noqa: N801  (used like a function: `with km.override(...)`)
    """Choose the backend of an op inside a ``with`` block: honoured there, or select_backend raises NoKernel.

    Nests (the innermost wins) and belongs to the current thread or task. Raises UnknownOp, UsageError for an unknown
    backend, and NoKernel for one that has no kernel of the op, on entry.
    """

    def __init__(self, op: str, *, backend: str):
        self._choice = (op, backend)

    def __enter__(self) -> override:
        op, backend = self._choice
        registry = _registry()
        check_backend(Explicit(backend, "km.override"), registry.op(op), registry)
        kernels = registry.kernels(op)
        if not any(backend in (kernel.backend, kernel.name) for kernel in kernels):
            has = ", ".join(sorted({kernel.backend for kernel in kernels}))
            raise NoKernel(f"{op} has no kernel on {backend}, which km.override asks for. It has: {has}.")
        _overrides.set((*(_overrides.get() or ()), self._choice))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The innermost one of this context: blocks end in the order opposite to their beginnings.
        _overrides.set((_overrides.get() or ())[:-1] or None)


def warmup(*targets: Selection | str | Mapping[str, Any], ms: Iterable[int] = (), **problem: Any) -> list[Selection]:
    """Load what calls will need, before ``freeze()`` or graph capture. Returns the Selections.

    A target is a Selection, an op name (with the problem as keywords, as for select_backend), or a mapping of those
    keywords that has ``op``. ``ms`` are token counts: each kernel's own warmup hook compiles what they need.
    """
    counts = tuple(ms)
    selections = []
    for target in targets:
        if isinstance(target, Selection):
            selection = target
        elif isinstance(target, str):
            selection = select_backend(target, **problem)
        elif isinstance(target, Mapping) and "op" in target:
            selection = select_backend(**{**problem, **target})
        else:
            raise UsageError(f"warmup takes Selections, op names or mappings with an op; {target!r} is none of them.")
        selection.warm()
        _ready(selection.op.name)
        if selection.configs is not None:
            for count in counts:
                selection.config_at(count)
        if selection.declaration.warmup is not None:
            load(selection.declaration.warmup, f"warming {selection.kernel}")(selection, counts)
        selections.append(selection)
    return selections


def _ready(op: str) -> None:
    """Make ``km.ops.<op>`` itself; without torch there is none to make."""
    try:
        load("kernelmux.ops:ready")(op)
    except MissingPackage:
        return


def freeze() -> None:
    """From here on nothing tunes, compiles, loads or touches a file.

    A selection already made, or that can be made from what is in memory, is answered; anything else raises
    FrozenError naming ``km.warmup()``.
    """
    frozen.set_frozen(True)
