"""YAML: called in clients and pool slots. The safe subset both ways, so loading cannot run code.

Source: kombu 5.7's `yaml` serializer, `safe_dump` and `safe_load`.
"""

from __future__ import annotations

from typing import Any

import yaml


class YamlSerializer:
    """Celery's `yaml`."""

    name = "yaml"
    content_type = "application/x-yaml"
    content_encoding = "utf-8"
    unsafe = False

    def dumps(self, obj: Any) -> bytes:
        try:
            return yaml.safe_dump(obj).encode("utf-8")
        except yaml.YAMLError as exc:
            raise TypeError(f"cannot be written as safe YAML: {exc}") from exc
        except RecursionError:
            raise ValueError("cannot be written as YAML: nested too deeply") from None

    def loads(self, data: bytes) -> Any:
        try:
            return yaml.safe_load(data)
        except Exception as exc:  # YAMLError, and KeyError, AttributeError … of its constructors (B26)
            raise ValueError(f"not valid YAML: {type(exc).__name__}: {exc}") from exc
