"""For tests: of celeriac's own plugins, of others', and of programs that use celeriac.

`broker_suite`, `backend_suite`, `serializer_suite` and `pool_suite` are the conformance suites of the four kinds;
`services` starts private servers, and `fixtures` gives them to pytest. No other room imports this one: pytest, which it
needs, comes with `celeriac[testing]` and stays out of production.
"""
