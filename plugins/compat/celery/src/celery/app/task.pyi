from celeriac.app.task import *
