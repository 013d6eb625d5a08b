"""YAML for files that people write: a key stands once, nothing is aliased, and a fault has a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError

LIMIT_BYTES = 1 << 20  # a policy is a page of text; what is larger is no policy

_loader: Any = None


def read_yaml(path: Path) -> Any:
    """The file as plain data. Raises ConfigFileError with line and key for anything that is not plain YAML."""
    text = _text(path)
    import yaml

    _refuse_aliases(path, text)
    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigFileError(path, where, f"{error.problem or error}.", "Mend the YAML there.") from None
    except yaml.YAMLError as error:
        raise ConfigFileError(path, "", f"{error}.", "Write plain YAML in UTF-8.") from None
    except RecursionError:
        raise ConfigFileError(path, "", "is nested too deeply.", "A policy is a list of rules.") from None


def line_of(path: Path, keys: tuple[str | int, ...]) -> int | None:
    """The line (from 1) of a key or list item, for messages; the nearest enclosing one where it is missing."""
    import yaml

    node = yaml.compose(_text(path), Loader=yaml.SafeLoader)
    line: int | None = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigFileError(
            path, "", f"cannot be read ({error.strerror}).", "Give the path of a policy file."
        ) from None
    if len(data) > LIMIT_BYTES:
        raise ConfigFileError(path, "", f"holds {len(data)} bytes.", f"A policy has at most {LIMIT_BYTES}.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigFileError(path, f"byte {error.start}", "is not UTF-8.", "Save it as UTF-8.") from None


def _refuse_aliases(path: Path, text: str) -> None:
    """A few nested aliases can expand to gigabytes, and no policy needs one."""
    if "*" not in text or "&" not in text:
        return
    import yaml

    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                where = f"line {event.start_mark.line + 1}" if event.start_mark else ""
                raise ConfigFileError(path, where, f"uses the alias *{event.anchor}.", "Write the value out.")
    except yaml.YAMLError:
        pass  # the reading that follows says what is wrong


def _strict_loader() -> Any:
    global _loader
    if _loader is None:
        import yaml

        class Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
            """SafeLoader that refuses a key given twice, which YAML would let the last one win."""

            def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
                seen: set[Any] = set()
                for key_node, _ in node.value:
                    key = self.construct_object(key_node, deep=True)
                    if not isinstance(key, (str, int, float, bool)) and key is not None:
                        raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
                    if key in seen:
                        problem = f"the key {key!r} stands twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                    seen.add(key)
                made: dict[Any, Any] = super().construct_mapping(node, deep)
                return made

        _loader = Strict
    return _loader
