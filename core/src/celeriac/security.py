"""Signed messages: `app.setup_security()`, at Celery's path. The signing itself is the serializer plugin `auth`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celeriac.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from celeriac.app.base import Celery

__all__ = ["disable_untrusted_serializers", "setup_security"]


def setup_security(
    allowed_serializers: Iterable[str] | None = None,
    key: str | None = None,
    key_password: str | bytes | None = None,
    cert: str | None = None,
    store: str | None = None,
    digest: str | None = None,
    serializer: str = "json",
    app: Celery | None = None,
) -> None:
    """Make sure that the app signs what it sends and reads only what is signed, and that its keys are of use.

    Args:
        allowed_serializers: More content types or names to read, unsigned.
        key, key_password, cert, store, digest: Instead of the settings `security_…`.
        serializer: What stands inside signed messages.
    Raises:
        ImproperlyConfigured: `task_serializer` is not `auth`, `accept_content` does not have it, or a key,
            certificate or folder is missing or of no use.
    """
    if app is None:
        from celeriac import _state

        app = _state.get_current_app()
    conf = app.conf
    given: dict[str, Any] = {
        "security_key": key,
        "security_key_password": key_password,
        "security_certificate": cert,
        "security_cert_store": store,
        "security_digest": digest,
        "security_serializer": serializer,
    }
    conf.update({name: value for name, value in given.items() if value is not None})
    if conf["task_serializer"] != "auth" or "auth" not in conf["accept_content"]:
        raise ImproperlyConfigured(
            f"signed messages need task_serializer = 'auth' and accept_content = ['auth'], not "
            f"{conf['task_serializer']!r} and {list(conf['accept_content'])!r}"
        )
    if allowed_serializers:
        conf.update(accept_content=[*dict.fromkeys([*conf["accept_content"], *allowed_serializers])])
    app.codec.serializer("auth")


def disable_untrusted_serializers(whitelist: Iterable[str] | None = None, app: Celery | None = None) -> None:
    """Accept these serializers and signed messages, and nothing else."""
    if app is None:
        from celeriac import _state

        app = _state.get_current_app()
    app.conf.update(accept_content=[*dict.fromkeys(["auth", *(whitelist or ())])])
