from celeriac.app import *
