from celeriac.utils.time import *
