"""What fits an app into its surroundings: called once by `Celery()`, for each name in `builtin_fixups` and `fixups`.

A fix-up is a function of the app, named `module:function`; it returns None when its surroundings are not there. What it
returns otherwise may have `before_imports()`, called before modules with tasks are imported, and
`autodiscovered_packages()`, asked by `app.autodiscover_tasks()` when that is given none.
"""
