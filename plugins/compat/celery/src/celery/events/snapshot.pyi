from celeriac.events.snapshot import *
