"""For tests: of celeriac's own plugins, of others', and of programs that use celeriac.

For programs: `plugin` has the pytest fixtures, `rehearsal` runs an app in the test's own thread, `threaded` a whole
worker beside it (docs/reference/testing.md).

`broker_suite`, `backend_suite`, `serializer_suite` and `pool_suite` are the conformance suites of the four kinds;
`services` starts private servers, and `fixtures` gives them to pytest. No other room imports this one: pytest, which it
needs, comes with `celeriac[testing]` and stays out of production.
"""
