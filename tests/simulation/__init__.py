"""The whole engine in virtual time, with a fault at each call to the store: the same in every run, and an hour in a blink.

scenario.py: messages, handlers, a supervisor --> the real Worker --every call--> database.py: faults --> the store in memory
                     |                                 (on loop.py, whose clock jumps)
                     `--> history.py: what handlers did, and whether it was allowed
"""
