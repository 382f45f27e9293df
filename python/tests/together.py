"""Tasks on threads, all at once."""

import threading


def run_together(*tasks):
    """Runs each task on a thread of its own, from one starting line; raises what one of them raised."""
    line, errors = threading.Barrier(len(tasks)), []

    def run(task):
        line.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
