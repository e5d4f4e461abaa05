from celeriac.contrib.sphinx import *
