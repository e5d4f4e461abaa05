from celeriac.utils.timer2 import *
