from celeriac.app.log import *
