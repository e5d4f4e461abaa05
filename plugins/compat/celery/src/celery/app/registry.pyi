from celeriac.app.registry import *
