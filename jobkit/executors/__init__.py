"""Where handler code runs: one executor a file, all behind `jobkit.interfaces.Executor`.

`handler` is the part that they share: it turns bytes into a job, calls it, and turns what comes of it into an outcome.
An executor decides only where that happens, and how its context waits.
"""
