"""Other people's benchmarks and metrics: TruthfulQA, ToxiGen, BOLD, MT-Bench, the leaderboard's tasks, ROUGE and kin.

Another benchmark is a file here: how its rows are read, what is asked, what is counted.
"""
