from celeriac.utils.saferepr import *
