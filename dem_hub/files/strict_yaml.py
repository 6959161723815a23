"""Strict reading of YAML: plain data, bounded before anything is made of it, and no key twice.

A few lines of YAML can stand for more values than any memory holds, since an alias repeats what it names. So the values
are counted in the graph that the parser makes, in which each is there once, and only then made.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import check_text

# Bytes of a file. A config of a merge has a few kB.
_LARGEST_FILE = 1_000_000
# Characters of one value, such as the name of a folder.
_LONGEST_VALUE = 10_000
# Values of a file, each as often as an alias repeats it. A config with a filter for each tensor of a large model has
# about 10,000.
_MOST_VALUES = 200_000


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's own loader of plain data. Of a key that occurs twice it would take the last value, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Return a mapping, once each of its keys is there once."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConfigError(f"the key {shown(key.value)} occurs twice. Which of the two counts is not clear.")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


def read_yaml(path: Path) -> Any:
    """Return the data in a YAML file.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the file is not YAML, larger than 1 MB, nested more deeply than Python can
            follow, or has a key twice, too many values, a value that is too long, or one that contains itself.
        `OSError`: If the file cannot be read.
    """
    with path.open("rb") as stream:
        text = stream.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ConfigError(f"'{path}' is larger than {_LARGEST_FILE:,} bytes, which no config is. Do not use it.")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_count(node)
        return loader.construct_document(node)
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also dates that there are not, and endless numbers
        raise ConfigError(f"'{path}' is not YAML: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_count(root: yaml.Node) -> None:
    """Refuse a graph with too many values, or with one that is too long or contains itself."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) in counts:
            if not counts[id(node)]:
                raise ConfigError("a value contains itself.")
            return counts[id(node)]
        counts[id(node)] = 0  # not known yet
        total = 1
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > _LONGEST_VALUE:
                raise ConfigError(f"the value {shown(node.value)} has {len(node.value):,} characters.")
            check_text(node.value, "the file")
        elif isinstance(node, yaml.MappingNode):
            total += sum(count(key) + count(value) for key, value in node.value)
        else:
            total += sum(map(count, node.value))
        counts[id(node)] = total
        return total

    total = count(root)
    if total > _MOST_VALUES:
        raise ConfigError(f"it stands for more than {_MOST_VALUES:,} values, which no config has. Do not use it.")
