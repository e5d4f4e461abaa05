"""Additions to the library, at the paths where Celery's users look for them. Nothing of core imports them."""
