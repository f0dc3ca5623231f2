"""A server inside somebody's tests: what it was asked, faults, a clock that moves, and a reset.

contracts/collections.md, "For tests and local development only". Nothing of it is loaded unless it is asked for.
"""
