"""The defaults that users can set, the dask way: files, environment, `dask.config.set`.

``ctlab-zarr.yaml`` in this package lists them, below ``ctlab-zarr``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import dask
from dask.utils import parse_bytes, parse_timedelta

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.codecs import AUTO_CODECS, array_kwargs, codec_syntax
from ctlab_dask_zarr.text import LEAST_WORKER_NBYTES

_SECTION = "ctlab-zarr"
#: Mappings whose keys users choose themselves.
_OPEN_MAPPINGS = {
    *("distributed.nanny.environ", "distributed.nanny.pre-spawn-environ", "logging"),
    "ctlab-zarr.storage-options",
}
#: Keys that dask reads without having a default for them.
KEYS_WITHOUT_DEFAULT = ("num-workers", "pool", "scheduler", "scheduler-address")


class Setting(NamedTuple):
    """One setting: its name, its value in force, and where the value comes from."""

    name: str
    value: Any
    origin: str


def packaged_settings() -> str:
    """Return the text of the packaged defaults, which users can copy as an example."""
    return (files("ctlab_dask_zarr") / "ctlab-zarr.yaml").read_text()


def setting(name: str) -> Any:
    """Return the value in force of one of the settings in ``ctlab-zarr.yaml``.

    Raises
    ------
    InvalidArgumentError
        The value is wrong, or the configuration has a setting that does not exist.
    """
    defaults = load_defaults()
    problems = list(wrong_keys({_SECTION: _section_in_force()}, {_SECTION: defaults}))
    if problems:
        raise InvalidArgumentError(
            f"dask's configuration: {'; '.join(problems)} (`ctlab-zarr config` shows where it is)"
        )
    # Somebody may have set the whole section, and left this setting out.
    value = dask.config.get(f"{_SECTION}.{name}", defaults[name])
    is_right, meant = _RULES[name]
    if not is_right(value):
        places = [where for where, section in _origins() if section.get(name, ...) == value]
        origin = f" ({places[-1]})" if places else ""
        raise InvalidArgumentError(
            f"dask's configuration: {_SECTION}.{name} is {value!r}{origin}: set it to {meant}"
        )
    return value


def settings_in_force() -> list[Setting]:
    """Return every setting with its origin, and also names that are set but do not exist."""
    defaults = load_defaults()
    origins = list(_origins())
    given = _section_in_force()
    found = []
    for name in (*defaults, *(key for key in given if key not in defaults)):
        # Later places override earlier ones.
        place = next((where for where, section in reversed(origins) if name in section), None)
        if name in defaults:
            origin = place or "default"
        else:
            origin = f"{place}: there is" if place else "set, but there is"
            origin += " no such setting"
        found.append(Setting(name, given.get(name, defaults.get(name)), origin))
    return found


def wrong_keys(
    given: Mapping[str, Any], known: Mapping[str, Any], parent: str = ""
) -> Iterator[str]:
    """Yield a message for each key that is not known, with the nearest known one.

    On the first level only near misses count, since any package may have a section of its own.
    """
    spelled = {
        canonical_name(key): key for key in (*known, *(() if parent else KEYS_WITHOUT_DEFAULT))
    }
    for key, value in given.items():
        name = f"{parent}{key}"
        if canonical_name(key) in spelled:
            below = known.get(spelled[canonical_name(key)])
            # An empty mapping as default also means that users choose the keys.
            is_open = not below or canonical_name(name) in _OPEN_MAPPINGS
            if isinstance(value, Mapping) and isinstance(below, Mapping) and not is_open:
                yield from wrong_keys(value, below, f"{name}.")
            continue
        near = get_close_matches(canonical_name(key), spelled, 1)
        if near:
            yield f"{name} is not a setting; is {parent}{spelled[near[0]]} meant?"
        elif parent:
            yield f"{name} is not a setting; there are {', '.join(map(str, known))}"


def canonical_name(key: object) -> str:
    """Return a key with hyphens; dask takes underscores for the same."""
    return str(key).replace("_", "-")


@cache
def load_defaults() -> dict[str, Any]:
    """Give dask's configuration the packaged defaults, once; return them."""
    import yaml

    content = yaml.safe_load(packaged_settings())
    # update_defaults would silently overwrite a value that is not a section.
    _section_in_force()
    dask.config.update_defaults(content)
    section: dict[str, Any] = content[_SECTION]
    return section


def _origins() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each file, then each variable of the environment, and what it sets."""
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        yield str(path), _section(content, str(path))
    for variable, value in os.environ.items():
        if variable.startswith("DASK_CTLAB_ZARR__"):
            yield variable, _section(dask.config.collect_env({variable: value}), variable)


def _section(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings in a configuration, by canonical names."""
    sections = (value for key, value in content.items() if canonical_name(key) == _SECTION)
    found = next(sections, None)
    if not isinstance(found, Mapping | None):
        raise InvalidArgumentError(
            f"{where}: {_SECTION} is {found!r}: it has to hold settings, each by its name, as "
            "`levels: auto`"
        )
    return {canonical_name(key): value for key, value in (found or {}).items()}


def _section_in_force() -> dict[str, Any]:
    found = dask.config.get(_SECTION, None)
    if not isinstance(found, Mapping | None):
        # If a file is the culprit, this raises an error that names it.
        list(_origins())
    return _section({_SECTION: found}, "dask's configuration")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_shape(value: Any) -> bool:
    if isinstance(value, list | tuple):
        # 0 spans the axis.
        return bool(value) and all(_is_count(n) or n == 0 for n in value)
    return value == "auto" or _is_count(value)


def _parsed(parse: Callable[[str], Any], value: Any) -> Any:
    """Return the result of `parse`, or None if it refuses the value."""
    try:
        return parse(str(value))
    except (ValueError, KeyError):
        return None


#: For each setting: what is right, and how to say it.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chunks": (_is_shape, "a shape as [32, 32, 32], a number of elements, or auto"),
    "shards": (
        lambda value: value in (None, "none") or _is_shape(value),
        "a shape as [512, 512, 512], a number of elements, auto or none",
    ),
    "codec": (
        lambda value: value in AUTO_CODECS or _parsed(array_kwargs, value) is not None,
        f"a codec: {codec_syntax()}",
    ),
    "levels": (lambda value: value == "auto" or _is_count(value), "a number from 1 on, or auto"),
    "scale-placement": (
        lambda value: value in ("dataset", "multiscales"), "dataset or multiscales",
    ),
    "workers": (_is_count_or_none, "a number of worker processes from 1 on"),
    "threads": (_is_count_or_none, "a number of threads of a worker from 1 on"),
    "memory-limit": (
        lambda value: value is None or (_parsed(parse_bytes, value) or 0) >= LEAST_WORKER_NBYTES,
        "the memory of a worker, as 4GiB; it needs 64MiB or more",
    ),
    "cluster": (
        lambda value: isinstance(value, str | None), "a file (.yaml), or local, slurm, pbs or mpi",
    ),
    "jobs": (_is_count_or_none, "a number of jobs from 1 on"),
    "progress-interval": (
        lambda value: 0 < (_parsed(parse_timedelta, value) or 0) < math.inf, "a time as 5s or 1m",
    ),
    "follow-links": (lambda value: isinstance(value, bool), "true or false"),
    "storage-options": (
        lambda value: isinstance(value, Mapping | None), "a mapping, as {region: ap-southeast-2}",
    ),
}  # fmt: skip
