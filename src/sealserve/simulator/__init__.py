"""A simulated TDX platform: test PKI, collateral, software TD. For tests and demos only.

Nothing here protects anything. Everything it makes says SIMULATION, verifies
only under its own anchor, and it refuses to start on a real TDX guest. No
production package imports it.
"""
