"""What runs inside the peers' venvs: one app module for each, the client that drives it, and the meter they share."""
