"""Bytes held for principals and links, and their bounds. See ``budget.pxd``."""

cimport cython
from libc.stdint cimport int64_t

__all__ = ["Account", "Budget"]


@cython.final
cdef class Budget:
    """What the accounts of one gateway may hold together.

    `limit`: bytes. `key`: the setting's name, for messages.
    """

    def __init__(self, int64_t limit, str key="max_total_bytes"):
        if limit < 1:
            raise ValueError(f"{key}: expected at least 1 byte, got {limit}")
        self.limit = limit
        self.key = key

    def __repr__(self):
        return f"<Budget {self.held} of {self.limit} bytes>"


@cython.final
cdef class Account:
    """What is held for one principal, or one anonymous link.

    `name`: whose. `limit`: bytes. `budget`: the gateway's, which it counts in,
    too; None for no bound but its own. `key`: the setting's name, for messages.
    """

    def __init__(self, name, int64_t limit, Budget budget=None, str key="max_principal_bytes"):
        if limit < 1:
            raise ValueError(f"{key}: expected at least 1 byte, got {limit}")
        self.name = name
        self.limit = limit
        self.budget = budget
        self.key = key
        self.job_cost = 100000  # until it is known: one who is new does not go before those who are known to be quick

    def charge(self, int64_t n):
        """Counts `n` more bytes; False, and nothing is counted, where a bound would be passed."""
        return self.take(n)

    def release(self, int64_t n):
        """Gives `n` bytes back."""
        self.settle(-n)

    def insist(self, int64_t n):
        """Counts `n` bytes that are held already and can no longer be refused."""
        self.settle(n)

    def may(self, int64_t n):
        """Is there room for `n` more bytes?"""
        return self.room(n)

    def refusal(self, int64_t n):
        """Why `n` more bytes were refused, with the bound's name: the message of a PF429."""
        if n > self.limit - self.held:
            return (f"{self.key}: {self.held:,} bytes are held for {self.name} and {n:,} more asked for,"
                    f" at most {self.limit:,} may be")
        if self.budget is None:
            return f"{self.key}: {self.held:,} bytes are held for {self.name}"
        return (f"{self.budget.key}: {self.budget.held:,} of {self.budget.limit:,} bytes are held in all,"
                f" {self.held:,} of them for"
                f" {self.name}: who holds most is refused first")

    def __repr__(self):
        return f"<Account {self.name!r} {self.held} of {self.limit} bytes>"
