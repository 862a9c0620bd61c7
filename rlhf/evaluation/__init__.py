"""What a model is worth, with 95 % intervals: answers and who judges them; figures stand in rooms by what they are of.

`policies`, `reward_models`, `safety`, `benchmarks`, `instructions`. A new figure goes into the room of what it
measures; what all of them read (answers, scorers, scoring over the processes) is here.
"""
