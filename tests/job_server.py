"""Runs pieces of work in processes that can be killed: see `Jobs`.

One interpreter imports everything once and then forks, so that a process takes milliseconds to start. It computes
nothing itself: a process whose PyTorch has used its threads cannot be forked safely.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Jobs:
    """The other end: `run({"work": name, "folder": ...})` runs a job and returns its answer.

    Options of a job: `kill_after` (seconds), `kill_when` ([folder, pattern]: the seconds count from the moment when
    there is such a file with something in it). An answer has `status` ("done", "refused" with a CaptioningError's
    `message`, "killed" or "crashed"), `seconds`, and the work's own entries.
    """

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.job_server"], cwd=ROOT, env=environment,
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, job: dict) -> dict:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()  # it holds nothing, and the libraries take their time to say goodbye
        self.process.communicate()


# -- the work -----------------------------------------------------------------------------------------------------


def encode(folder: str, photos: str, log: str) -> dict:
    """Encodes 64 small photos, with a pause at each batch of four, and notes how many went through."""
    from helpers.encoders import cache_features
    from tests.test_features import Tiny

    paths = {path.name: path for path in sorted(Path(photos).iterdir())}
    made = cache_features(Tiny(log=Path(log), pause=0.02), paths, batch_size=4, folder=Path(folder))
    return {"names": made.names, "hash": hashlib.sha256(made.array.tobytes()).hexdigest()}


FIRST = {
    "epochs": 4, "images_per_batch": 9, "captions_per_image": 2, "learning_rate": 0.01, "warmup_steps": 1,
    "decoding": {"method": "greedy", "max_length": 10}, "average": 0.9,
}  # fmt: skip
SECOND = {**FIRST, "objective": "self_critical", "epochs": 2, "samples": 2, "learning_rate": 0.001, "average": 0.0}


def train(folder: str, log: str, mixed_precision: str = "no") -> dict:
    """Trains a toy captioner in two stages, noting each epoch as it ends; everything random in it is switched on."""
    from helpers.loop import make_accelerator
    from helpers.training import run_stage
    from tests.toy_captioners import small_run

    def note(row: dict) -> None:
        with open(log, "a") as file:
            file.write(f"{row['stage']}-{row['epoch']}\n")

    run = small_run(Path(folder), "ShowAttendTell", dropout=0.3)
    accelerator = make_accelerator(mixed_precision)
    for number, stage in enumerate((FIRST, SECOND), 1):
        run_stage(run, stage, number, accelerator, note)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    table = (Path(folder) / "history.csv").read_text()
    return {"history": rows, "weights": weights(run.model), "table": table.count("\n")}


def weights(model) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        hashed.update(name.encode() + value.numpy().tobytes())
    return hashed.hexdigest()


def save(folder: str, first: int, count: int) -> dict:
    """Saves one checkpoint after the other into the same folder; what is in it tells the number."""
    import torch

    from helpers import captioner
    from tests.test_features import Tiny
    from tests.toy_captioners import small_model

    captioner.load_encoder = lambda name, device="cpu": Tiny()
    model = small_model(hidden=256)
    for number in range(first, first + count):
        with torch.no_grad():
            for value in model.parameters():
                value.fill_(number % 1000)
        config = {"name": "toy", "encoder": "tiny", "features": "grid"}
        captioner.save_checkpoint(folder, model, config, {"number": number % 1000})
    return {}


def load(folder: str) -> dict:
    """Loads such a checkpoint; all its numbers have to be of one saving."""
    from helpers.captioner import load_checkpoint

    model, config = load_checkpoint(folder)
    found = {float(value) for parameter in model.parameters() for value in parameter.flatten().unique()}
    return {"found": sorted(found), "number": config["number"]}


WORK = {work.__name__: work for work in (encode, train, save, load)}


# -- the server ---------------------------------------------------------------------------------------------------


def child(job: dict, out: int) -> None:
    from helpers.files import CaptioningError

    try:
        answer = {"status": "done", **WORK[job.pop("work")](**job)}
    except CaptioningError as error:
        answer = {"status": "refused", "message": str(error)}
    except BaseException as error:  # noqa: BLE001  whatever it is, the test has to see it
        answer = {"status": "crashed", "message": f"{type(error).__name__}: {error}"}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(out, data):]


def wait_for_file(pid: int, folder: str, pattern: str) -> float:
    """Waits for such a file, or for the end of the process, which stays to be waited for; returns the moment."""
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with contextlib.suppress(FileNotFoundError):  # a temporary file may be gone before it is looked at
            if any(path.stat().st_size for path in Path(folder).glob(pattern) if path.is_file()):
                break
        time.sleep(0.002)
    return time.monotonic()


def run(job: dict) -> dict:
    """Forks a process for a job, kills it if it is to be killed, and returns its answer."""
    kill_after, kill_when = job.pop("kill_after", None), job.pop("kill_when", None)
    source, out = os.pipe()
    begin, pid = time.monotonic(), os.fork()
    if not pid:
        os.close(source)
        child(job, out)
        os._exit(0)
    os.close(out)
    if kill_after is not None:
        counted = begin if kill_when is None else wait_for_file(pid, *kill_when)
        time.sleep(max(0.0, counted + kill_after - time.monotonic()))
        os.kill(pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
    with os.fdopen(source, "rb") as file:
        data = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer = json.loads(data) if data else {"status": "killed" if status == -signal.SIGKILL else "crashed"}
    return {**answer, "seconds": time.monotonic() - begin}


def main() -> None:
    # what the work imports, here and once; nothing of it computes while it is imported
    import accelerate  # noqa: F401
    import nltk.translate.bleu_score  # noqa: F401
    import pandas  # noqa: F401
    import pycocoevalcap.cider.cider  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    from PIL import Image

    import helpers.captioner
    import helpers.datasets
    import helpers.losses  # noqa: F401
    import tests.test_features
    import tests.toy_captioners  # noqa: F401

    torch.set_num_threads(1)
    Image.init()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
