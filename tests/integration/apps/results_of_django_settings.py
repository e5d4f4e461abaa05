"""Settings of the project in `results_of_django.py`."""

import os

SECRET_KEY = "of tests"
INSTALLED_APPS = [os.environ["RESULTS_APP"]]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["RESULTS_DB"],
        "OPTIONS": {"timeout": 20},
    }
}
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
