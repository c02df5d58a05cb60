"""The store contract as a model: any calls in any order, compared with what DESIGN §1 and the port's docstrings expect.

machine.py --calls--> a store                 expected.py: plain lists, written from the contract, not from a store
         `----calls and answers--> Expected --may it answer so? what is in the outbox now?--> compared after each step
"""
