"""Documents tasks with Sphinx: an extension of its autodoc.

In `conf.py`::

    extensions = ["celeriac.contrib.sphinx"]

`automodule` then finds tasks among a module's members (as objects they are no functions), and `.. autotask:: proj.add`
documents one. They appear with a prefix, `(task)` unless `celery_task_prefix` says otherwise, and references are
:py:task:`proj.add`, or plainly :py:func: and :py:obj:.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.domains.python import PyFunction, PyXRefRole
from sphinx.ext.autodoc import FunctionDocumenter

from celeriac.app.task import Task

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config


class TaskDocumenter(FunctionDocumenter):
    """Knows tasks among the members of a module."""

    objtype = "task"
    member_order = 11
    priority = FunctionDocumenter.priority + 1  # to autodoc, which looks through wrappers, a task is a function too

    @classmethod
    def can_document_member(cls, member: Any, membername: str, isattr: bool, parent: Any) -> bool:
        """Whether it is a task."""
        return isinstance(member, Task) and hasattr(member, "__wrapped__")

    def format_args(self, **_: Any) -> str:
        """The signature with which it is called: without `self`, and as `delay` takes it."""
        try:
            return str(signature(self.object.run)).replace("\\", "\\\\")
        except (TypeError, ValueError):
            return ""  # a task that is a class and says nothing of its arguments

    def document_members(self, all_members: bool = False) -> None:
        """None: what a task has, all tasks have."""

    def check_module(self) -> bool:
        """Whether it belongs to the module that is documented, rather than being imported there."""
        wrapped = getattr(self.object, "__wrapped__", None)
        if wrapped is not None and getattr(wrapped, "__module__", None) == self.modname:
            return True
        return bool(super().check_module())


class TaskDirective(PyFunction):
    """`.. py:task:: name(args)`."""

    def get_signature_prefix(self, sig: str) -> list[nodes.Node]:
        """What stands before the name."""
        return [nodes.Text(f"{self.env.config.celery_task_prefix} ")]


def keep_tasks(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Autodoc would leave out what it takes for an undocumented instance: a task with a docstring stays."""
    if isinstance(obj, Task) and hasattr(obj, "__wrapped__") and obj.__doc__:
        return False
    return None


def use_documenters(app: Sphinx, config: Config) -> None:
    """From Sphinx 9 on, autodoc asks documenters of extensions only if it is told to."""
    if "autodoc_use_legacy_class_based" in config:
        config.autodoc_use_legacy_class_based = True


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("config-inited", use_documenters, priority=1)
    app.add_autodocumenter(TaskDocumenter)
    app.add_directive_to_domain("py", "task", TaskDirective)
    app.add_role_to_domain("py", "task", PyXRefRole())
    app.add_config_value("celery_task_prefix", "(task)", "env")
    app.connect("autodoc-skip-member", keep_tasks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
