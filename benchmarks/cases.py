"""Run a folder of generators of awkward input, each with the command that it prints, and show what the command says.

python benchmarks/cases.py GENERATORS [--checkout .] [--only NAME]

A generator writes its input to the folder that is its argument, and prints a line with a `quintet` command and a line with the
right answer. `--checkout`: a clone in which the pipeline has run; SRC names its drawn data. Ends with status 1 if a command left
a traceback, another exit status than 0 or 2, or part of an output; whether the answer is right is for the reader.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

SECONDS = 300  # per command
SHOWN = 6  # lines of an answer
CHANGED = re.compile(r"with fusion\.([\w.]+)=(\[.*?\]|\S+)")  # a parameter, without its section `data`


def command_of(printed: str, folder: Path) -> str:
    """The shell command that a generator printed; where it names one in words, the study's check."""
    lines = printed.splitlines()
    line = next((line for line in lines if line.startswith("RUN:") or "quintet " in line), "").removeprefix("RUN: ")
    parts = [part.strip().partition(" (")[0] for part in line.split(";")]
    shell = [part for part in parts if part.startswith(("quintet ", "for ", "cat ", "done"))]
    return "; ".join(shell or [f"quintet check fusion --data {folder}/input"]).replace("OUT/", f"{folder}/results/")


def answer_of(printed: str) -> str:
    return next((line for line in printed.splitlines() if line.lower().startswith("right:")), "right: (not stated)")


def checkout_with(checkout: Path, folder: Path, printed: str) -> Path:
    """A folder with the content of the checkout, in which a parameter that the generator named is changed."""
    folder.mkdir()
    for path in checkout.iterdir():
        (folder / path.name).symlink_to(path)
    if found := CHANGED.search(printed):
        (folder / "params.yaml").unlink()
        params = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
        section, *rest = found[1].split(".")
        inner = params["fusion"]["data"] if not rest else params["fusion"]["data"][section]
        inner[rest[-1] if rest else section] = yaml.safe_load(found[2].replace("[", "['").replace("]", "']").replace(",", "','"))
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def run_case(generator: Path, checkout: Path, folder: Path) -> tuple[str, str, list[str]]:
    """The right answer, the output of the command, and what is wrong with it."""
    environment = os.environ | {"SRC": "data/synthetic", "PYTHONPATH": str(checkout / "src")}
    made = subprocess.run(
        [sys.executable, str(generator), str(folder / "input")],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        return "", made.stderr[-500:], ["the generator failed"]
    (folder / "results").mkdir()
    place, command = checkout_with(checkout, folder / "checkout", made.stdout), command_of(made.stdout, folder)
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    output = (done.stderr + done.stdout).replace(str(folder), "")
    wrong = ["a traceback"] if "Traceback" in output else []
    wrong += [f"exit status {done.returncode}"] if done.returncode not in (0, 2) else []
    wrong += [f"{path.name} is left" for path in (folder / "results").rglob(".*.part*")]
    return answer_of(made.stdout), output, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", type=Path)
    parser.add_argument("--checkout", type=Path, default=Path.cwd())
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    failed = []
    for generator in sorted(options.generators.resolve().rglob("*.py")):
        if generator.stem in ("base", "common") or options.only not in generator.stem:
            continue
        with tempfile.TemporaryDirectory() as folder:
            right, output, wrong = run_case(generator, options.checkout.resolve(), Path(folder))
        shown = [line for line in output.splitlines() if line.strip()]
        print(f"{generator.stem}: {'; '.join(wrong) or 'ok'}\n  {right}", *shown[:SHOWN], sep="\n    ", flush=True)
        failed += [generator.stem] if wrong else []
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
