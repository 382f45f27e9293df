"""The settings of the process that the library is used in stay as they are."""

import os
import pathlib
import signal
import subprocess
import sys
import unittest

import kvcache
import numpy
import host

STORYTELLER = pathlib.Path(__file__).resolve().parents[2] / "models" / "storyteller"
ROWS = numpy.ones((1, 2, 40, 16), numpy.float32)


def attend():
    cache = kvcache.DynamicKVCache()
    cache.update(ROWS, ROWS, 0, executor=kvcache.ThreadPool(2))
    kvcache.attend(ROWS, cache, layer=0)


def stop_a_text_early():
    for _ in kvcache.Model(STORYTELLER).generate("Once", 50, stream=True):
        break


def use_everything(test):
    model = kvcache.Model(STORYTELLER)
    host.openmp(threads=3)
    for name, use in (("attend", attend),
                      ("a model", lambda: kvcache.Model(STORYTELLER)),
                      ("logits of many tokens", lambda: model.logits(list(range(3, 60)))),
                      ("a text", lambda: model.generate("Once upon a time", max_tokens=9)),
                      ("sampling", lambda: model.generate("Once", 5, top_k=4, temperature=1)),
                      ("half a text", stop_a_text_early)):
        with test.subTest(name), host.unchanged(test, name):
            use()


class Host(unittest.TestCase):
    def test_no_call_changes_them(self):
        host.in_a_new_thread(lambda: use_everything(self))

    def test_nor_those_that_are_not_the_default(self):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        places = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(places)})
        try:
            host.in_a_new_thread(lambda: use_everything(self))
        finally:
            os.sched_setaffinity(0, places)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def test_nor_does_importing(self):
        code = ("import unittest\nfrom host import unchanged, settings\n"
                "def some():\n"
                "    found = settings()\n"
                "    del found['openmp']  # which importing loads\n"
                "    return found\n"
                "with unchanged(unittest.TestCase(), 'importing', some):\n"
                "    import kvcache\n")
        path = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
        subprocess.run([sys.executable, "-c", code], check=True,
                       env={**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    unittest.main()
