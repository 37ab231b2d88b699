"""The defaults that users can set, the dask way: files, environment, `dask.config.set`.

They are what ``ctlab-zarr.yaml`` in this package lists, below ``ctlab-zarr``.
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

from ctlab_dask_zarr.errors import InvalidArgumentError

__all__ = [
    "WITHOUT_DEFAULT",
    "Setting",
    "canonical_name",
    "load_defaults",
    "packaged_settings",
    "setting",
    "settings_in_force",
    "wrong_keys",
]

_SECTION = "ctlab-zarr"
#: Mappings whose keys are the user's own.
_OPEN = {
    *("distributed.nanny.environ", "distributed.nanny.pre-spawn-environ", "logging"),
    "ctlab-zarr.storage-options",
}
#: Keys that dask reads without having a default for them.
WITHOUT_DEFAULT = ("num-workers", "pool", "scheduler", "scheduler-address")
#: A worker needs more than this to start at all; a smaller number lacks its unit.
_LEAST_WORKER_NBYTES = 2**26


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
        Somebody has set one that there is not, or this one to what makes no sense.

    Examples
    --------
    >>> setting("levels")
    1
    >>> with dask.config.set({"ctlab-zarr.levels": "auto"}):
    ...     setting("levels")
    'auto'
    """
    defaults = load_defaults()
    problems = list(wrong_keys({_SECTION: _section_in_force()}, {_SECTION: defaults}))
    if problems:
        raise InvalidArgumentError(
            f"dask's configuration: {'; '.join(problems)} (`ctlab-zarr config` shows where it is)"
        )
    # Not in the configuration where somebody has set the section as a whole.
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
    """Return every setting, and those that are set and are none, with where they come from."""
    defaults = load_defaults()
    origins = list(_origins())
    given = _section_in_force()
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


def wrong_keys(
    given: Mapping[str, Any], known: Mapping[str, Any], parent: str = ""
) -> Iterator[str]:
    """Yield one message for each key that is not among the known ones, with the nearest of them.

    On the first level only near misses count: any package may have a section of its own.
    """
    spelled = {canonical_name(key): key for key in (*known, *(() if parent else WITHOUT_DEFAULT))}
    for key, value in given.items():
        name = f"{parent}{key}"
        if canonical_name(key) in spelled:
            below = known.get(spelled[canonical_name(key)])
            # An empty mapping as default says that its keys are the user's own, too.
            is_open = not below or canonical_name(name) in _OPEN
            if isinstance(value, Mapping) and isinstance(below, Mapping) and not is_open:
                yield from wrong_keys(value, below, f"{name}.")
            continue
        near = get_close_matches(canonical_name(key), spelled, 1)
        if near:
            yield f"{name} is no setting; is {parent}{spelled[near[0]]} meant?"
        elif parent:
            yield f"{name} is no setting; there are {', '.join(map(str, known))}"


def canonical_name(key: object) -> str:
    """Return a key in the one of its two spellings that dask takes for the same."""
    return str(key).replace("_", "-")


@cache
def load_defaults() -> dict[str, Any]:
    """Give dask's configuration the packaged defaults, once; return them."""
    import yaml

    content = yaml.safe_load(packaged_settings())
    # What is no section would be overwritten without a word.
    _section_in_force()
    dask.config.update_defaults(content)
    section: dict[str, Any] = content[_SECTION]
    return section


def _origins() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield files, then the environment, and what each says, by canonical names."""
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        yield str(path), _section(content, str(path))
    for variable, value in os.environ.items():
        if variable.startswith("DASK_CTLAB_ZARR__"):
            yield variable, _section(dask.config.collect_env({variable: value}), variable)


def _section(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    sections = (value for key, value in content.items() if canonical_name(key) == _SECTION)
    found = next(sections, None)
    if not isinstance(found, Mapping | None):
        raise InvalidArgumentError(
            f"{where}: {_SECTION} is {found!r}: it has to hold settings, each by its name, as "
            "`levels: auto`"
        )
    return {canonical_name(key): value for key, value in (found or {}).items()}


def _section_in_force() -> Mapping[str, Any]:
    found = dask.config.get(_SECTION, None)
    if not isinstance(found, Mapping | None):
        # Says in which file it is, where it is in one.
        list(_origins())
    return _section({_SECTION: found}, "dask's configuration")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_text_or_none(value: Any) -> bool:
    return isinstance(value, str | None)


def _is_shape(value: Any) -> bool:
    if isinstance(value, list | tuple):
        # 0 spans the axis.
        return bool(value) and all(_is_count(n) or n == 0 for n in value)
    return value == "auto" or _is_count(value)


def _is_codec(value: Any) -> bool:
    from ctlab_dask_zarr.formats.codecs import array_kwargs

    try:
        array_kwargs(str(value))
    except (ValueError, IndexError):
        return False
    return True


def _is_memory_or_none(value: Any) -> bool:
    from dask.utils import parse_bytes

    try:
        return value is None or parse_bytes(str(value)) >= _LEAST_WORKER_NBYTES
    except ValueError:
        return False


def _is_interval(value: Any) -> bool:
    from dask.utils import parse_timedelta

    try:
        seconds = parse_timedelta(str(value))
    except (ValueError, KeyError):
        return False
    return bool(0 < seconds < math.inf)


#: Of each setting: what is right, and how to say it.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chunks": (_is_shape, "a shape as [32, 32, 32], a number of elements, or auto"),
    "shards": (
        lambda value: value in (None, "none") or _is_shape(value),
        "a shape as [512, 512, 512], a number of elements, auto or none",
    ),
    "codec": (_is_codec, "a codec: zstd:3, blosc:zstd:5:bitshuffle, gzip:6, lz4 or none"),
    "levels": (lambda value: value == "auto" or _is_count(value), "a number from 1 on, or auto"),
    "scale-placement": (
        lambda value: value in ("dataset", "multiscales"), "dataset or multiscales",
    ),
    "workers": (_is_count_or_none, "a number of worker processes from 1 on"),
    "threads": (_is_count_or_none, "a number of threads of a worker from 1 on"),
    "memory-limit": (_is_memory_or_none, "the memory of a worker, as 4GiB; it needs 64MiB or more"),
    "cluster": (_is_text_or_none, "a file (.yaml), or local, slurm, pbs or mpi"),
    "jobs": (_is_count_or_none, "a number of jobs from 1 on"),
    "progress-interval": (_is_interval, "a time as 5s or 1m"),
    "follow-links": (lambda value: isinstance(value, bool), "true or false"),
    "storage-options": (
        lambda value: isinstance(value, Mapping | None), "a mapping, as {region: ap-southeast-2}",
    ),
}  # fmt: skip
