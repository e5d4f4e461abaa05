from celeriac.contrib.django import *
