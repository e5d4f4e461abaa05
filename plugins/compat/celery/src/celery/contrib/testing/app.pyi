from celeriac.contrib.testing.app import *
