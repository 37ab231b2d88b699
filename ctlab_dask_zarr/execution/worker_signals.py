"""Preloaded in the workers of a local cluster: they leave signals to the process that owns them.

Ctrl-C and a batch system's SIGTERM reach every process of a job. The command decides then, lets
the shards under way be finished and closes its workers; a worker whose owner died ends by itself.
"""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Ignore what asks to stop; called by dask in the worker's main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
