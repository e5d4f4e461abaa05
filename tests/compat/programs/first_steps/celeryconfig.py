broker_url = "redis://localhost:6379/0"  # CELERY_BROKER_URL says where it is today
result_backend = "redis://localhost:6379/1"

task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
timezone = "Europe/Oslo"
enable_utc = True
result_extended = True

task_routes = {"tasks.slow_add": {"queue": "low"}}
task_annotations = {"tasks.add": {"rate_limit": "600/m"}}
