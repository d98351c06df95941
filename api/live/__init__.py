"""Live streams: what the feed gets is told to whoever listens, by one thread for all of them.

A listener is a socket and a place in the feed. Those that are behind are read to from PostgreSQL, a page whenever
they have taken the one before; those that are up to date get what is new from one look for all. One that takes too
slowly is behind again, and costs its own reading only.
"""
