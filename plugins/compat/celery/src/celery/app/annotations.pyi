from celeriac.app.annotations import *
