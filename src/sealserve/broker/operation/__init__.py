"""What an operator sees of a broker: page, metrics, traces, and the doctor's early warning.

Nothing in here decides a release or changes a row; all of it may fail without a
guest noticing.
"""
