from celeriac.contrib.pytest import *
