"""A cluster's configuration: a YAML file in dask's own keys, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import dask
import yaml

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.settings import (
    KEYS_WITHOUT_DEFAULT,
    canonical_name,
    load_defaults,
    wrong_keys,
)

__all__ = [
    "check_dask_config",
    "configured_kind",
    "known_settings",
    "read_configuration",
]


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a YAML file says, in dask's spelling of its keys.

    Raises
    ------
    InvalidArgumentError
        There is no such file, it is no YAML, or a key in it is one that nobody reads: `dask.config`
        would take it without a word.
    """
    name = os.fspath(path)
    try:
        with open(name) as file:
            loaded = yaml.safe_load(file)
    except OSError as error:
        raise InvalidArgumentError(f"cluster configuration {name}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"cluster configuration {name} is no YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InvalidArgumentError(
            f"cluster configuration {name} holds {type(loaded).__name__}: it has to hold keys, as "
            "`jobqueue:` or `distributed:`"
        )
    problems = [*wrong_keys(loaded, known_settings("jobqueue" in loaded)), *_misplaced_keys(loaded)]
    if problems:
        raise InvalidArgumentError(f"cluster configuration {name}: {'; '.join(problems)}")
    return loaded


def check_dask_config() -> None:
    """Raise an error where a file that ``DASK_CONFIG`` names is wrong: dask itself says nothing.

    Raises
    ------
    InvalidArgumentError
        As of `read_configuration`.
    """
    path = os.environ.get("DASK_CONFIG")
    if not path:
        return
    files = [path]
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        files = [os.path.join(path, name) for name in names if name.endswith((".yaml", ".yml"))]
    for file in files:
        read_configuration(file)


def known_settings(with_jobqueue: bool = False) -> dict[str, Any]:
    """Return every setting that dask, and dask-jobqueue, have a default for."""
    import distributed  # noqa: F401 - its defaults come with it

    load_defaults()
    if with_jobqueue:
        from ctlab_dask_zarr.execution.jobs import import_jobqueue

        import_jobqueue()
    return dask.config.merge(*dask.config.defaults)


def _misplaced_keys(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield one message for each key on the first level that belongs into ``jobqueue``.

    It would be taken for the section of some other package, and the cluster for a local one.
    """
    from ctlab_dask_zarr.execution.jobs import BATCH_SYSTEMS, import_jobqueue

    names = {canonical_name(key): key for key in given}
    unknown = {name: names[name] for name in names.keys() - known_settings().keys()}
    if not unknown:
        return
    try:
        import_jobqueue()
    except InvalidArgumentError:
        # Then what its sections hold is not known, and their names are enough.
        sections: Mapping[str, Any] = dict.fromkeys(BATCH_SYSTEMS, ())
    else:
        sections = {name: known_settings()["jobqueue"][name] for name in BATCH_SYSTEMS}
    for name, key in unknown.items():
        near = get_close_matches(name, sections, 1, cutoff=0.75)
        places = [f"jobqueue.{near[0]}"] if near else []
        places += [f"jobqueue.{system}.{name}" for system in sections if name in sections[system]]
        if places and name not in KEYS_WITHOUT_DEFAULT:
            yield f"{key} is no setting of its own; is {' or '.join(places)} meant?"


def configured_kind(settings: Mapping[str, Any], name: str) -> str:
    """Return what kind of cluster a configuration describes.

    A section of ``jobqueue`` is that batch system, a ``scheduler-address`` a running scheduler,
    and anything else holds for a local cluster.

    Examples
    --------
    >>> configured_kind({"jobqueue": {"slurm": {"cores": 1}}}, "slurm.yaml")
    'slurm'
    >>> configured_kind({"distributed": {}}, "local.yaml")
    'local'
    """
    from ctlab_dask_zarr.execution.jobs import BATCH_SYSTEMS

    systems = list(settings.get("jobqueue") or {})
    if len(systems) == 1 and systems[0] in BATCH_SYSTEMS:
        return str(systems[0])
    if systems:
        raise InvalidArgumentError(
            f"cluster configuration {name} has jobqueue sections {', '.join(map(str, systems))}: "
            f"it has to have one, {' or '.join(BATCH_SYSTEMS)}"
        )
    if any(canonical_name(key) == "scheduler-address" for key in settings):
        return "running"
    return "local"
