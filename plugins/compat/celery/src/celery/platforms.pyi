from celeriac.platforms import *
