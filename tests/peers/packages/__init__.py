"""Third-party compressors for the laws: the documented call of each, and what its README promises.

A module is imported only in the environment of its package, since several packages are imported under one name.
"""
