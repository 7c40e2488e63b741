"""Training-aware architecture search (paper, sections 3.1 to 3.3).

space: the networks. reward: accuracy, step time and parameters as one number.
controllers: propose the next network. proxy: times one candidate and trains it for a
few epochs. search: runs all candidates, with any number of workers. results: tables,
configs and plots. scale_up: makes a network larger.
"""
