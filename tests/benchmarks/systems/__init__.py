"""What is measured: a module for each system, with a coroutine for each workload that it has.

A workload takes the DSN (SQLAlchemy's, for asyncpg), the number of messages and the options of its run.
"""
