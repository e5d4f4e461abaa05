from celeriac.contrib.django.task import *
