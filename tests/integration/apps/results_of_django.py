"""Our half, and migrations, of a Django project whose results go through `django-db`.

    python results_of_django.py migrate [target]     # run by either Python
    python results_of_django.py store|read ids       # run by ours

The environment says which app has the models (RESULTS_APP) and where the database is (RESULTS_DB).
"""

from __future__ import annotations

import json
import sys

import django
from django.core.management import call_command

django.setup()

if sys.argv[1] == "migrate":
    call_command("migrate", *sys.argv[2:], verbosity=0)
else:
    from results_of_celeriac import read, store

    from celeriac import Celery

    app = Celery("results", backend="django-db", result_extended=True)
    print(json.dumps(store(app) if sys.argv[1] == "store" else read(app, sys.argv[2])))
