from celeriac.loaders.default import *
