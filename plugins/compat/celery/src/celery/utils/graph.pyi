from celeriac.utils.graph import *
