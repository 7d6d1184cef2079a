# The gateway's routing: one switch serves all of its links.
#
# How packets move is `flow`'s; what is known is in its parts: who handles what
# (directory), who is there (membership), who announces nothing (newcomers), what waits for room (queues) or
# for other packets (dependencies), what is kept (held), how packets ended (outcomes), what the gateway handles
# itself (local), what went wrong (failures). Each can be read by itself.

from pfcore.route.flow cimport Flow

cdef class Switch(Flow):
    pass
