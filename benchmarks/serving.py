"""Latency and throughput of a served run, and whether a malformed request harms it.

python benchmarks/serving.py --model runs/landmarks/sweep/heatmap/seed0 [--requests 100] [--clients 4]

Starts `mlflow models serve` (one process) with the run's model, sends its input example from several clients at once, with one
malformed request in ten, and counts the answers.
"""

import argparse
import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests

from quintet.serving.loader import Served
from quintet.serving.model import write_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        write_model(options.model, model)
        shutil.copy(options.model / "model" / "model.pt", model)
        served = Served(model, "cpu")
        row = served.requests.example(served.models).to_dict("records")[0]
        encoded = {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in row.items()}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port), "--workers", "1"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            report(f"http://127.0.0.1:{port}", {"dataframe_records": [encoded]}, options.requests, options.clients)
        finally:
            subprocess.run(["pkill", "-TERM", "-s", str(server.pid)], check=False)


def report(address: str, body: dict[str, object], count: int, clients: int) -> None:
    started = time.monotonic()
    while True:
        try:
            if requests.get(f"{address}/ping", timeout=1).status_code == 200:
                break
        except requests.RequestException:
            pass
        if time.monotonic() - started > 120:
            raise SystemExit("the server did not start within two minutes")
        time.sleep(0.2)
    print(f"start: {time.monotonic() - started:.1f} s")
    bad = {"dataframe_records": [{"nothing": 1}]}

    def send(number: int) -> tuple[int, bool, float]:
        before = time.monotonic()
        wrong = number % 10 == 9
        response = requests.post(f"{address}/invocations", data=json.dumps(bad if wrong else body), headers=JSON, timeout=120)
        return response.status_code, wrong, time.monotonic() - before

    send(0)
    before = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(send, range(count)))
    seconds = time.monotonic() - before
    times = np.array([s for status, wrong, s in answers if not wrong and status == 200]) * 1000
    refused = sum(wrong and status == 400 for status, wrong, _ in answers)
    lost = count - len(times) - refused
    print(f"{count} requests of {clients} clients: {len(times)} answered, {refused} malformed ones refused, {lost} lost")
    median, high = np.quantile(times, [0.5, 0.95])
    print(f"latency: median {median:.0f} ms, 95 % within {high:.0f} ms; {count / seconds:.1f} a second")
    print(f"alive: {requests.get(f'{address}/ping', timeout=5).status_code == 200}")


JSON = {"Content-Type": "application/json"}

if __name__ == "__main__":
    main()
