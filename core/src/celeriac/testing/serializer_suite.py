"""The conformance suite of serializers: what `celeriac.spec.Serializer` promises, as tests.

For a plugin's own tests::

    class TestMySerializer(SerializerConformance):
        plugin = "celeriac_serializer_mine"
        name = "mine"
        content_type = "application/x-mine"
        content_encoding = "binary"
        unsafe = False
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celeriac.spec import Serializer
from celeriac.testing.kit import KitSerializers, make_by_hook

__all__ = ["SerializerConformance"]

#: What every serializer carries without a change.
PLAIN: list[Any] = [
    None,
    True,
    0,
    -(2**63),
    2**63 - 1,
    1.5,
    -0.1,
    1e300,
    "",
    'grün \N{SNOWMAN} \N{GRINNING FACE} \x00 " \\ \n \u2028',
    [],
    {},
    [1, [2, [3, [4]]]],
    {"a": {"b": {"c": [None, False, "x"]}}},
    [[2, 3], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
    [["x" * 10_000], {"numbers": list(range(2_000))}, {}],
]


class SerializerConformance:
    """Subclass it in a plugin's tests.

    Attributes:
        plugin: The plugin's module.
        name, content_type, content_encoding, unsafe: What the serializer declares.
        settings: What its hook is given of the app's settings.
        extras: Values beyond the plain ones that it carries without a change.
        unknown: Makes something that it cannot carry.
    """

    plugin: str
    name: str
    content_type: str
    content_encoding: str
    unsafe: bool
    extras: Sequence[Any] = ()
    settings: Mapping[str, Any] = {}

    @staticmethod
    def unknown() -> Any:
        return iter(lambda: 0, 1)  # which pickle refuses, too

    @pytest.fixture
    def serializer(self) -> Serializer:
        made: Serializer = make_by_hook(
            self.plugin, "celeriac_make_serializer", name=self.name, settings=self.settings, host=KitSerializers()
        )
        return made

    def test_it_declares_what_it_was_said_to_declare(self, serializer: Serializer) -> None:
        declared = (serializer.name, serializer.content_type, serializer.content_encoding, serializer.unsafe)
        assert declared == (self.name, self.content_type, self.content_encoding, self.unsafe)

    def test_it_is_not_taken_for_another(self) -> None:
        with pytest.raises(AssertionError):
            other = f"not-{self.name}"
            make_by_hook(self.plugin, "celeriac_make_serializer", name=other, settings={}, host=KitSerializers())

    @pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
    def test_plain_values_come_back_as_they_were(self, serializer: Serializer, value: Any) -> None:
        data = serializer.dumps(value)
        assert isinstance(data, bytes)
        back = serializer.loads(data)
        assert back == value
        assert type(back) is type(value)

    def test_its_other_values_come_back_as_they_were(self, serializer: Serializer) -> None:
        for value in self.extras:
            back = serializer.loads(serializer.dumps([value]))[0]
            assert back == value
            assert type(back) is type(value)

    def test_what_it_does_not_know_is_refused(self, serializer: Serializer) -> None:
        for value in (self.unknown(), [1, {"a": self.unknown()}]):
            with pytest.raises((TypeError, ValueError)):
                serializer.dumps(value)

    def test_B26_any_bytes_give_a_value_or_a_value_error(self, serializer: Serializer) -> None:
        # Mutations of its own output reach further into a parser than noise does. The seed makes a failure repeatable.
        dice = random.Random(5)
        whole = serializer.dumps([{"a": 1.5, "b": ["x", None]}, *[v for v in self.extras if v is not None]])
        samples = [b"", b"\x00", b"\xff" * 50, b"[" * 50_000, b"{" * 50_000, b"(" * 1_000, b"9" * 5_000]
        samples += [dice.randbytes(dice.randrange(1, 60)) for _ in range(400)]
        for _ in range(400):
            mutant = bytearray(whole)
            for _ in range(dice.randrange(1, 4)):
                mutant[dice.randrange(len(mutant))] = dice.randrange(256)
            samples.append(bytes(mutant[: dice.randrange(1, len(mutant) + 1)]))
        for sample in samples:
            if self.unsafe and not self.is_harmless(sample):
                continue
            try:
                serializer.loads(sample)
            except ValueError:
                pass  # as promised

    @staticmethod
    def is_harmless(data: bytes) -> bool:
        """For an unsafe serializer: whether a test may load these bytes."""
        return False

    def test_it_may_be_used_by_many_threads(self, serializer: Serializer) -> None:
        values = [PLAIN[-2], PLAIN[-1], {"n": 1}] * 20

        def there_and_back(value: Any) -> Any:
            return serializer.loads(serializer.dumps(value))

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(there_and_back, values)) == values
