"""What happens in a pool slot: decode, run, classify, encode. No I/O of the room's own."""
