"""The pytest fixtures of `celeriac.testing.plugin`, at the path where Celery's users look for them.

`pytest_plugins = ["celeriac.contrib.pytest"]` in a conftest.py.
"""

pytest_plugins = ("celeriac.testing.plugin",)
