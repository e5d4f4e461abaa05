task_always_eager = True
task_default_queue = "from-celeryconfig"
