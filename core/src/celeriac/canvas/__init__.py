"""Calls as values: signatures that can be passed on, stored and linked.

Only single signatures and links stand here yet; chains, groups and chords come with the canvas issue.
"""

from celeriac.canvas.signature import Signature, maybe_signature, signature

__all__ = ["Signature", "maybe_signature", "signature"]
