"""The campaign: many tasks under many faults, and a count of what was lost and what ran twice.

    python -m benchmarks.chaos --broker redis --tasks 100000 --faults 200

Workers run tasks that write down when they start and end. Meanwhile one fault after the other strikes the network, the
server, the file or the workers; each is confirmed by what it did. At the end every task that the broker accepted must
have run to its end, with its result stored, and whatever ran twice must have been told so.
"""
