"""The worker: receives, admits, hands to the pool, and performs what the reports ask for."""
