"""Turns a section of a config into an object: the frozen dataclass whose fields it names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidmotion.errors import ConfigError


def plain(value: Any) -> Any:
    """Convert ``ConfigDict``s to dicts and lists to tuples, at every depth of `value`."""
    if hasattr(value, "to_dict") or isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def from_config(cls: type, section: Any, where: str, **given: Any) -> Any:
    """Build a `cls` from its section of the config.

    A field of `section` that is a mapping, and that `cls` annotates with a dataclass, is built in the same way.

    Args:
      cls: a frozen dataclass or a linen module.
      section: a mapping of the fields of `cls`; or an instance of `cls`, of which only the fields `given` change.
      where: the section's place in the config, for messages, for example ``system.encoder``.
      **given: fields that the caller sets and the config cannot set.

    Raises:
      ConfigError: a field does not exist or is missing, or `cls` refuses a value.
    """
    if isinstance(section, cls):
        return dataclasses.replace(section, **given)
    # Linen adds the fields `parent` and `name` to every module.
    hidden = {*given, *(("parent", "name") if hasattr(cls, "apply") else ())}
    fields = [field for field in dataclasses.fields(cls) if field.name not in hidden]
    values = plain(section)
    for field in fields:
        value = values.get(field.name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(field.type):
            values[field.name] = from_config(field.type, value, f"{where}.{field.name}")
    try:
        return cls(**values, **given)
    except TypeError as error:
        known = ", ".join(field.name for field in fields)
        raise ConfigError(f"config.{where}: {error}. Known fields: {known}") from error
    except ValueError as error:
        placed = str(error).startswith("config.")
        raise ConfigError(str(error) if placed else f"config.{where}: {error}") from error
