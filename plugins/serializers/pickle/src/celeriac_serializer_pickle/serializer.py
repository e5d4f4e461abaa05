"""Pickle: called in clients and pool slots. Loading runs whatever the sender wrote, so core must be told aloud.

Source: kombu 5.7's `pickle` serializer, protocol 4 unless the environment's `PICKLE_PROTOCOL` says otherwise.
"""

from __future__ import annotations

import os
import pickle
from typing import Any, Final

PROTOCOL: Final = int(os.environ.get("PICKLE_PROTOCOL", "4"))


class PickleSerializer:
    """Celery's `pickle`."""

    name = "pickle"
    content_type = "application/x-python-serialize"
    content_encoding = "binary"
    unsafe = True

    def dumps(self, obj: Any) -> bytes:
        try:
            return pickle.dumps(obj, protocol=PROTOCOL)
        except (TypeError, ValueError):
            raise
        except Exception as exc:  # PicklingError, AttributeError of a local class, or what a __reduce__ raised
            raise TypeError(f"cannot be pickled: {type(exc).__name__}: {exc}") from exc

    def loads(self, data: bytes) -> Any:
        try:
            return pickle.loads(data)
        except Exception as exc:  # unpickling calls the sender's choice of functions: it can raise anything (B26)
            raise ValueError(f"not a valid pickle: {type(exc).__name__}: {exc}") from exc
