"""The defaults that users can set, the dask way: files, environment, `dask.config.set`.

They are what ``ctlab-zarr.yaml`` in this package lists, below ``ctlab-zarr``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import dask

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.runtime.configuration import canonical_name, wrong_keys

__all__ = ["Setting", "load_defaults", "packaged_settings", "setting", "settings_in_force"]

_SECTION = "ctlab-zarr"


class Setting(NamedTuple):
    """One setting: its name, what is in force, and where that comes from."""

    name: str
    value: Any
    origin: str


def packaged_settings() -> str:
    """Return the text of the packaged defaults, an example of a file of one's own."""
    return (files("ctlab_dask_zarr") / "ctlab-zarr.yaml").read_text()


def setting(name: str) -> Any:
    """Return the value in force of one of the settings in ``ctlab-zarr.yaml``.

    Raises
    ------
    InvalidArgumentError
        Somebody has set one that there is not.

    Examples
    --------
    >>> setting("levels")
    1
    >>> with dask.config.set({"ctlab-zarr.levels": "auto"}):
    ...     setting("levels")
    'auto'
    """
    defaults = load_defaults()
    given = dask.config.get(_SECTION, {})
    problems = list(wrong_keys({_SECTION: given}, {_SECTION: defaults}))
    if problems:
        raise InvalidArgumentError(
            f"dask's configuration: {'; '.join(problems)} (`ctlab-zarr config` shows where it is)"
        )
    # Not in the configuration where somebody has set the section as a whole.
    return dask.config.get(f"{_SECTION}.{name}", defaults[name])


def settings_in_force() -> list[Setting]:
    """Return every setting, and those that are set and are none, with where they come from."""
    defaults = load_defaults()
    origins = list(_origins())
    given = dask.config.get(_SECTION, {})
    names = [*defaults, *(key for key in given if canonical_name(key) not in defaults)]
    found = []
    for name in names:
        key = canonical_name(name)
        value = dask.config.get(f"{_SECTION}.{name}", defaults.get(key))
        # The last one takes the place of those before.
        places = [where for where, section in origins if key in section]
        if key in defaults:
            origin = places[-1] if places else "default"
        else:
            origin = f"{places[-1]}: there is" if places else "set, but there is"
            origin += " no such setting"
        found.append(Setting(name, value, origin))
    return found


@cache
def load_defaults() -> dict[str, Any]:
    """Give dask's configuration the packaged defaults, once; return them."""
    import yaml

    content = yaml.safe_load(packaged_settings())
    dask.config.update_defaults(content)
    section: dict[str, Any] = content[_SECTION]
    return section


def _origins() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield files, then the environment, and what each says, by canonical names."""
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        yield str(path), _section(content)
    for variable, value in os.environ.items():
        if variable.startswith("DASK_CTLAB_ZARR__"):
            yield variable, _section(dask.config.collect_env({variable: value}))


def _section(content: Mapping[str, Any]) -> dict[str, Any]:
    sections = (value for key, value in content.items() if canonical_name(key) == _SECTION)
    found = next(sections, None) or {}
    return {canonical_name(key): value for key, value in found.items()}
