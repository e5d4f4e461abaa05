"""Calls as values: signatures that can be passed on, stored, linked, chained and grouped."""

from celeriac.canvas.chain import chain
from celeriac.canvas.group import group
from celeriac.canvas.signature import Signature, maybe_signature, signature

__all__ = ["Signature", "chain", "group", "maybe_signature", "signature"]
