"""Which calls must not run: the client's half, and the form in which they are kept.

A revocation is an entry in the space `revoked` of the app's shared state, so it is known to workers that are not there
yet, and it ends by the store's clock. `worker/revoked.py` is the other half.
"""

from __future__ import annotations

import hashlib
import signal as signals
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from celeriac.exceptions import Unsupported
from celeriac.spec.state import Change

if TYPE_CHECKING:
    from celeriac.spec.state import SharedState

SPACE: Final = "revoked"
#: Longer keys are replaced by their hash; a store takes 255 characters.
LONGEST_KEY: Final = 240


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    """How a call is revoked.

    Attributes:
        signum: The signal that ends it if it runs already; 0: it may end by itself.
    """

    signum: int = 0


def id_key(task_id: str) -> str:
    """The entry of one call."""
    return _key("id", task_id)


def stamp_key(header: str, value: Any) -> str:
    """The entry of all calls that carry this stamp."""
    return _key("stamp", f"{header}={value}")


def pack(revocation: Revocation) -> bytes:
    """An entry's value."""
    return msgspec.json.encode(revocation)


def unpack(value: bytes) -> Revocation | None:
    """Read an entry's value; None if it is none, for anybody may write there."""
    try:
        return msgspec.json.decode(value, type=Revocation)
    except msgspec.MsgspecError:
        return None


def parse_signal(name: Any) -> int:
    """The number of a signal: `SIGKILL`, `KILL`, `9`, `signal.SIGKILL`; None is SIGTERM.

    Raises:
        ValueError: There is no such signal here.
    """
    if name is None:
        return int(signals.SIGTERM)
    text = str(name.name if isinstance(name, signals.Signals) else name).upper()
    try:
        number = int(text) if text.isdigit() else getattr(signals, text if text.startswith("SIG") else f"SIG{text}")
        return int(signals.Signals(number))
    except (AttributeError, ValueError):
        raise ValueError(f"there is no signal {name!r}; give a name such as 'SIGTERM' or a number") from None


def keys_of_stamps(headers: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """The entries of stamps given as `{"customer": ["a", "b"]}`, `{"customer": "a"}` or `["customer=a"]`."""
    if isinstance(headers, Mapping):
        return [stamp_key(header, value) for header, values in headers.items() for value in as_values(values)]
    pairs = [word.partition("=") for word in ([headers] if isinstance(headers, str) else headers)]
    for header, sign, _ in pairs:
        if not sign:
            raise ValueError(f"a stamp is given as 'header=value', not {header!r}")
    return [stamp_key(header, value) for header, _, value in pairs]


def as_values(values: Any) -> Sequence[Any]:
    """The values of a stamp, which may be one or several."""
    return list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]


class Revocations:
    """Revokes calls durably.

    Args:
        state: The app's shared state, or None.
        expires_s: How long a revocation is kept.
    """

    def __init__(self, state: SharedState | None, expires_s: float) -> None:
        self._state = state
        self._expires_s = expires_s

    def revoke_ids(self, ids: Iterable[str], *, terminate: bool = False, signal: Any = None) -> None:
        """Revoke these calls; as `add`.

        Raises:
            Unsupported: There is no shared state to keep it in.
        """
        self._require(self.add([id_key(task_id) for task_id in ids], terminate=terminate, signal=signal))

    def revoke_stamps(
        self, headers: Mapping[str, Any] | Iterable[str], *, terminate: bool = False, signal: Any = None
    ) -> None:
        """Revoke all calls that carry one of these stamps; as `revoke_ids`."""
        self._require(self.add(keys_of_stamps(headers), terminate=terminate, signal=signal))

    def add(self, keys: Sequence[str], *, terminate: bool = False, signal: Any = None) -> bool:
        """Revoke what these keys name; when this returns True, every worker obeys within seconds, also those that are
        not there yet. False: there is no shared state to keep it in.

        Raises:
            ValueError: There is no such signal.
            OperationalError, BackendError: The store cannot be reached; it may or may not be revoked.
        """
        revocation = Revocation(parse_signal(signal) if terminate else 0)
        if self._state is None:
            return False
        value = pack(revocation)
        if keys:
            self._state.write(SPACE, [Change(key, value, self._expires_s) for key in keys])
        return True

    @staticmethod
    def _require(kept: bool) -> None:
        if not kept:
            raise Unsupported(
                "a revocation has to be kept where all workers see it, and neither the broker nor the result backend "
                "of this app can (ability 'state'); the sqlite and redis backends can"
            )


def _key(kind: str, text: str) -> str:
    if len(text) > LONGEST_KEY or not text.isprintable():
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{kind}#{digest}"
    return f"{kind}:{text}"
