from celeriac.loaders.app import *
