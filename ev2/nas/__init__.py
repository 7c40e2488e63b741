"""Training-aware architecture search (paper, section 3.1 to 3.3).

space: what may be chosen. reward: accuracy, step time and parameters as one number.
controllers: what is tried next. proxy: one candidate, timed and trained for a short
while. search: all of them, by any number of workers. outcome: what was found.
"""
