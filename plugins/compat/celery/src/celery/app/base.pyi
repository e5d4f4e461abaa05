from celeriac.app.base import *
