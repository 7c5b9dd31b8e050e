"""The error that a user can fix, and what its one line is made of."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """An error the user can fix. One line names the file, key or row and what was expected."""


def brief(error: object) -> str:
    """An exception, or other text, on one line and not too long."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 300 else f"{text[:300]} …"


def nearest(word: object, known: Iterable[object]) -> str:
    """' Did you mean X?' if the spelling of some X in `known` is close to `word`, else ''."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """table[name]. Raises UserError, which lists the valid names, if there is no such name."""
    if name not in table:
        raise UserError(f"{key}: unknown name '{name}'; expected one of {', '.join(table)}.{nearest(name, table)}")
    return table[name]
