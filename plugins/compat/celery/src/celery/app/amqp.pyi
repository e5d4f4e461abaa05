from celeriac.app.amqp import *
