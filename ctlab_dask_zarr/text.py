"""Text that people read: sizes, durations, tables, and what stores and URLs say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape

#: A worker needs more memory than this to start at all: a smaller size was given without its unit.
LEAST_WORKER_NBYTES = 2**26
#: Control characters, which move a terminal's cursor or change its settings, and those that turn
#: the direction of text round, so that it reads as something else. Line ends and tabs stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: The query of a URL, which may hold a signature, and a user with a password.
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]*")
_USER = re.compile(r"(://)[^\s/?#'\"<>]*@")
#: A signature by its name, where it stands without its URL.
_SIGNATURE = re.compile(
    r"\b(sig|signature|awsaccesskeyid|x-(?:amz|goog|ms)-[a-z-]*"
    r"(?:signature|credential|token))=[^\s&'\"<>]+",
    re.IGNORECASE,
)

#: Advice as messages hold it: keywords of Python, and the options of the command.
_KEYWORD = r"\b\w+=(?:\([^()]*\)|'[^']*'|[^\s,;:()']*)"
_ADVICE = re.compile(rf"({_KEYWORD}(?:, {_KEYWORD})*) \((--[a-z][^()]*)\)")
#: Keywords in messages that are options of the same name.
_OPTION = re.compile(
    r"(?<![\w/'=.-])(slices|shape|dtype|levels?|values|window|pattern|chunks|shards|codec)="
    r"(\([^()]*\)|'[^']*'|[\w.:]+)"
)


def in_python(text: str) -> str:
    """Return a message with the keywords of Python alone.

    Examples
    --------
    >>> in_python("go on by resume=True (--resume), or give chunks=(64, 64) (--chunks)")
    'go on by resume=True, or give chunks=(64, 64)'
    """
    return _ADVICE.sub(r"\1", text)


def in_command(text: str) -> str:
    """Return a message with the options of the command alone.

    Examples
    --------
    >>> in_command("go on by resume=True (--resume), or voxel_size=2.5 (--voxel-size 2.5um)")
    'go on by --resume, or --voxel-size 2.5um'
    >>> in_command("slices='100:900' are 800, and shape=(3, 4, 5) is another")
    '--slices 100:900 are 800, and --shape 3,4,5 is another'
    """
    return _OPTION.sub(_option, _ADVICE.sub(r"\2", text))


def _option(found: re.Match[str]) -> str:
    value = found[2].strip("()'").replace(", ", ",")
    return f"--{found[1].replace('_', '-')} {value}"


def command_text(command: str, *paths: str) -> str:
    """Return a command line with paths as a shell takes them, in the quotes of a message.

    Examples
    --------
    >>> command_text("commit", "/data/my scan.zarr")
    "`ctlab-zarr commit '/data/my scan.zarr'`"
    """
    return f"`ctlab-zarr {command} {' '.join(map(path_text, paths))}`"


def path_text(path: str) -> str:
    """Return a path as a shell takes it, also one that begins like an option.

    Examples
    --------
    >>> path_text("scan.zarr"), path_text("-scan.zarr"), path_text("a b.zarr")
    ('scan.zarr', './-scan.zarr', "'a b.zarr'")
    """
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def shown(text: str) -> str:
    r"""Return text as it may be shown: control characters spelt out, secrets of URLs left out.

    Examples
    --------
    >>> print(shown("scan\x1b[2J of https://host/a.zarr?sig=abc"))
    scan\x1b[2J of https://host/a.zarr?...
    """
    text = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    if "=" not in text and "@" not in text:
        return text
    text = _QUERY.sub(r"\1?...", _USER.sub(r"\1...@", text))
    return _SIGNATURE.sub(r"\1=...", text)


def nbytes_text(nbytes: float) -> str:
    """Return a size for people, in powers of 1024.

    Examples
    --------
    >>> nbytes_text(3 * 2**28)
    '768.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            break
        nbytes /= 1024
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"


def counted_text(n: int, noun: str) -> str:
    """Return a number of things for people.

    Examples
    --------
    >>> counted_text(1, "shard"), counted_text(1728, "shard")
    ('1 shard', '1,728 shards')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size_text(size: Sequence[float], unit: str) -> str:
    """Return a voxel size for people, such as ``2.5 um`` or ``3 x 2.5 mm``."""
    sizes = size[:1] if len(set(size)) == 1 else size
    return f"{' x '.join(f'{v:.6g}' for v in sizes)} {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration for people.

    Examples
    --------
    >>> duration_text(3725)
    '1h02m'
    >>> duration_text(7.4)
    '7s'
    """
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def install_text(extra: str) -> str:
    """Return how an extra of this package is installed.

    Examples
    --------
    >>> install_text("view")
    "pip install 'ctlab-dask-zarr[view]' (in a clone: pip install '.[view]')"
    """
    return f"pip install 'ctlab-dask-zarr[{extra}]' (in a clone: pip install '.[{extra}]')"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of a name and a text as an HTML table."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(shown(name))}</th>'
        f'<td style="text-align:left">{escape(shown(text))}</td></tr>'
        for name, text in rows
    )
    return f"<table>{cells}</table>"
