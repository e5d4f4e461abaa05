from celeriac.app.control import *
