"""What `celeriac.testing` has for programs, at the paths where Celery's users look for it."""
