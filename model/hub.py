"""Weights from the Hugging Face hub: one try of the network, then the cache."""

from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 5  # seconds


@contextmanager
def one_try() -> Iterator[None]:
    """Inside, huggingface_hub looks in its cache alone where the hub does not answer; else it would try for a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
        except Exception:  # of whatever HTTP client it uses: no network, no proxy, no name
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
