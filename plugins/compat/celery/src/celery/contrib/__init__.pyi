from celeriac.contrib import *
