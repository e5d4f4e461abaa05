"""celeriac beside its peers: one table, measured in one run on one machine. See README.md in this folder."""
