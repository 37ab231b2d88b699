"""A cluster's configuration: a YAML file in dask's own keys, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import dask
import distributed  # noqa: F401 - brings its defaults into dask's configuration
import yaml

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.jobs import BATCH_SYSTEMS, import_jobqueue
from ctlab_dask_zarr.settings import (
    KEYS_WITHOUT_DEFAULT,
    canonical_name,
    load_defaults,
    wrong_keys,
)

__all__ = ["check_dask_config", "configured_kind", "read_configuration"]


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a YAML file says, in dask's spelling of its keys.

    Raises
    ------
    InvalidArgumentError
        The file is missing, is no YAML, or has a key that nobody reads: `dask.config` would ignore
        it silently.
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
    if "jobqueue" in loaded:
        import_jobqueue()
    problems = [*wrong_keys(loaded, _known_settings()), *_misplaced_keys(loaded)]
    if problems:
        raise InvalidArgumentError(f"cluster configuration {name}: {'; '.join(problems)}")
    return loaded


def check_dask_config() -> None:
    """Raise an error if a file that ``DASK_CONFIG`` names is wrong: dask itself says nothing."""
    path = os.environ.get("DASK_CONFIG")
    if not path:
        return
    files = [path]
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        files = [os.path.join(path, name) for name in names if name.endswith((".yaml", ".yml"))]
    for file in files:
        read_configuration(file)


def _known_settings() -> dict[str, Any]:
    """Return all settings that have a default: dask's, ours, and dask-jobqueue's if imported."""
    load_defaults()
    return dask.config.merge(*dask.config.defaults)


def _misplaced_keys(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key on the first level that belongs into ``jobqueue``.

    It would count as the section of some other package, and the cluster as a local one.
    """
    names = {canonical_name(key): key for key in given}
    unknown = names.keys() - _known_settings().keys() - set(KEYS_WITHOUT_DEFAULT)
    if not unknown:
        return
    # Without dask-jobqueue the keys of its sections are not known.
    sections: Mapping[str, Any] = dict.fromkeys(BATCH_SYSTEMS, ())
    try:
        import_jobqueue()
        sections = {system: _known_settings()["jobqueue"][system] for system in BATCH_SYSTEMS}
    except InvalidArgumentError:
        pass
    for name in unknown:
        near = get_close_matches(name, sections, 1, cutoff=0.75)
        places = [f"jobqueue.{near[0]}"] if near else []
        places += [f"jobqueue.{system}.{name}" for system in sections if name in sections[system]]
        if places:
            yield f"{names[name]} is no setting of its own; is {' or '.join(places)} meant?"


def configured_kind(settings: Mapping[str, Any], name: str) -> str:
    """Return what kind of workers a configuration describes.

    A section of ``jobqueue`` is that batch system, a ``scheduler-address`` a running scheduler,
    and anything else holds for a local cluster.

    Examples
    --------
    >>> configured_kind({"jobqueue": {"slurm": {"cores": 1}}}, "slurm.yaml")
    'slurm'
    >>> configured_kind({"distributed": {}}, "local.yaml")
    'local'
    """
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
