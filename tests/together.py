"""Threads that stand in for the processes of a run."""

import queue
import threading

from diffdepth_jax.processes import Processes


def together(function, count=3):
    """What a function of `Processes` returns or raises in each of several threads."""
    inboxes = [[queue.Queue() for _ in range(count)] for _ in range(count)]
    found = [None] * count

    def run(index):
        def exchange(message):
            for inbox in inboxes:
                inbox[index].put(message)
            return [source.get(timeout=600) for source in inboxes[index]]

        try:
            found[index] = function(Processes(index, count, exchange))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(inbox.empty() for boxes in inboxes for inbox in boxes), "rounds do not match"
    return found
