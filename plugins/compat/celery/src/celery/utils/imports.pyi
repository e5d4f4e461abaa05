from celeriac.utils.imports import *
