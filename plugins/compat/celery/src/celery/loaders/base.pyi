from celeriac.loaders.base import *
