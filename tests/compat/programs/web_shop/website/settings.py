"""As of a Django project: the settings of its task queue among all the others."""

INSTALLED_APPS = ["orders", "mails"]
SECRET_KEY = "not for production"
CELERY_BROKER_URL = "redis://localhost:6379/0"
CELERY_RESULT_BACKEND = "redis://localhost:6379/1"
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "Europe/Berlin"
CELERY_TASK_DEFAULT_QUEUE = "shop"
CELERY_TASK_ROUTES = {"mails.tasks.*": {"queue": "mails"}}
CELERY_TASK_QUEUE_MAX_PRIORITY = 10
