"""Text that people read: what a store or a URL says is shown, and never acts on a terminal."""

from __future__ import annotations

import re

__all__ = ["shown"]

#: Control characters, which move a terminal's cursor or change its settings, and those that turn
#: the direction of text round, so that it reads as something else. Line ends and tabs stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: The query of a URL, which may hold a signature, and a user with a password.
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]*")
_USER = re.compile(r"(://)[^\s/?#'\"<>@]*@")
#: A signature by its name, where it stands without its URL.
_SIGNATURE = re.compile(
    r"\b(sig|signature|awsaccesskeyid|x-(?:amz|goog|ms)-[a-z-]*"
    r"(?:signature|credential|token))=[^\s&'\"<>]+",
    re.IGNORECASE,
)


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
