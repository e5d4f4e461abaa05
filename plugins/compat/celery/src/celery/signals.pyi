from celeriac.signals import *
