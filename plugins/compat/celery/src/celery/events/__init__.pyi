from celeriac.events import *
