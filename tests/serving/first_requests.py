"""Runs as a process of its own: the first requests to a model, all at the same moment.

``first_requests.py VERSION_DIRECTORY`` prints ``answered`` when all have been.
"""

import io
import sys
import threading
from pathlib import Path

import numpy as np

from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.openvino import OpenVinoRuntime

# A thread that gets the interpreter keeps it: what waits for it while holding something else shows.
sys.setswitchinterval(1)
runtime = OpenVinoRuntime(RuntimeConfig(threads=4, streams=4), make_log(io.StringIO()))
model = runtime.load(Path(sys.argv[1]))
together = threading.Barrier(8)


def ask() -> None:
    together.wait()
    model.run("serving_default", {"x": np.ones(1, "f4")}, ["y"])


threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("answered")
