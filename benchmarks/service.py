"""Load test of the HTTP service on loopback: `python benchmarks/service.py [--requests 400] [--at_once 8]`.

Starts serve.py in a process of its own, sends it sample photos from several senders at once, and prints one JSON
object: requests a second, milliseconds until the answer (median and 95 %), how many requests failed, how many photos
shared an encoder batch, what the service used of processor time and memory. The same with one sender, to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from screenshot import free_port  # noqa: E402


@contextlib.contextmanager
def service(*arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs serve.py and yields its address and process."""
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--device", "cpu", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
                break
            if process.poll() is not None:
                raise SystemExit("The service did not start.")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(30)


def used(process: subprocess.Popen) -> tuple[float, float]:
    """Returns (processor seconds so far, megabytes held), or zeros where /proc does not tell."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        text = Path(f"/proc/{process.pid}/status").read_text()
        return seconds, int(text.split("VmRSS:")[1].split()[0]) / 1000
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0


def load(
    address: str, process: subprocess.Popen, photos: Sequence[Path], model: str, requests: int, at_once: int
) -> dict:
    """Returns the figures of `requests` requests of one photo each from `at_once` senders."""
    contents = [photo.read_bytes() for photo in photos]
    times, failed = [], []
    with httpx.Client(base_url=address, timeout=300, limits=httpx.Limits(max_connections=at_once)) as client:

        def ask(number: int) -> None:
            begin = time.perf_counter()
            files = [("images", ("photo.jpg", contents[number % len(contents)]))]
            answer = client.post("/caption", files=files, data={"model": model})
            times.append(time.perf_counter() - begin)
            if answer.status_code != 200 or answer.json()[0]["caption"] is None:
                failed.append(answer.status_code)

        ask(0)  # the model is loaded, the first caption made
        times.clear()
        before, (seconds, _) = client.get("/healthz").json(), used(process)
        begin = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(ask, range(requests)))
        wall = time.perf_counter() - begin
        after, (end, megabytes) = client.get("/healthz").json(), used(process)
    batches = after["batches"] - before["batches"]
    return {
        "senders": at_once,
        "requests": requests,
        "failed": len(failed),
        "requests_per_second": round(requests / wall, 2),
        "processor_ms_per_request": round(1000 * (end - seconds) / requests, 1),
        "median_ms": round(1000 * statistics.median(times)),
        "p95_ms": round(1000 * statistics.quantiles(times, n=20)[-1]),
        "photos_per_batch": round(requests / max(batches, 1), 2),
        "megabytes": round(megabytes),
    }


def main() -> int:
    """Reads the command line, runs the load test and prints its figures. Returns 1 when a request failed."""
    p = argparse.ArgumentParser(description="Load test of the HTTP service on loopback.")
    p.add_argument("--requests", type=int, default=400)
    p.add_argument("--at_once", type=int, default=8, help="senders at the same time")
    p.add_argument("--model", default="", help="default: the default captioner")
    arguments = p.parse_args()
    photos = sorted((ROOT / "sample_images").glob("*.jpg"))
    with service() as (address, process):
        figures = {
            name: load(address, process, photos, arguments.model, requests, at_once)
            for name, requests, at_once in (
                ("one sender", max(arguments.requests // 4, 2), 1),
                ("many senders", arguments.requests, arguments.at_once),
            )
        }
    many, one = figures["many senders"], figures["one sender"]
    figures["gain"] = round(many["requests_per_second"] / one["requests_per_second"], 2)
    print(json.dumps(figures, indent=1))
    return int(bool(many["failed"] or one["failed"]))


if __name__ == "__main__":
    sys.exit(main())
