"""Strangers against a gateway in default configuration, beside a well-behaved victim: ``python -m benchmarks.attacks``.

`wire`: frames and bare connections; `attacker`: what an attack is and the process that it runs in; `frames`,
`sockets`, `answers`, `routing`, `elements`, `names`: the attacks, a module a class; `bystanders`: the gateway's
handlers, the worker and the victim; `trial`: one attack, or several at once, measured.
"""
