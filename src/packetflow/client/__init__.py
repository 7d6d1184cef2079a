"""What dials a gateway: the reactor, its blocking form, and the standard elements as Python knows them.

It needs none of the elements' own code: they run in the gateway.
"""
