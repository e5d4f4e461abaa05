from celeriac.app.utils import *
