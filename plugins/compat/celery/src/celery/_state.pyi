from celeriac._state import *
