"""Safety: violations and false refusals, who judges them, refusal detectors, the red team's log.

Another judge of answers is declared in `judging.py`; what is counted of its verdicts is in `figures.py`.
"""
