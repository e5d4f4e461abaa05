from celeriac.loaders import *
