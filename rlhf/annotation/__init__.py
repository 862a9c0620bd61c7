"""People in the loop: pairs of answers, who judges them, and where every judgement is kept (paper, section 3.2.1).

protocol.py has the words: Pair, Judgement, Annotator. Whoever judges (people on a page, the simulated world, a reward
model, a judge model, a file that is filled in, a class of your own) yields Judgements one by one, and store.py keeps
each at once. To add an annotator: one file with a class that fits the protocol, and a line in registry.py.
"""
