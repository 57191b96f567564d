"""SmolLM2-135M beside transformers: time to load it, to read 1,024 tokens and to write, and the memory it
takes.

    python benchmarks/pretrained.py [--json FILE] [--repeats 5] [--threads 2]

Each side lives in a process of its own, which imports everything first and then does what it is told; one
at a time works, in turn, so that whatever else the machine is doing falls on all. Both read the same GGUF
file; transformers computes in float32, as we do with weights in any form. Its loading is that of the model
alone, ours has the tokenizer with it. Memory is the peak of a process beyond what it had after its imports
(and after a toy model has run: some modules and all compiled code come in with the first call), when it has
loaded the model, read 992 tokens, 64 at a time, and written 32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import report

PROMPT, WRITTEN, CHUNK = 1024, 32, 64
FORMS = ("float32", "float16", "q4")
PEER = "transformers"
NAMES = (*FORMS, PEER)


# ---- the workers


class Ours:
    """A model of minattn."""

    def __init__(self, weights: str) -> None:
        import minattn  # noqa: F401, I001  before NumPy: it tells BLAS how long its idle threads may spin
        import numpy as np
        import tokenizers  # noqa: F401

        from minattn.transformer import GPT, Config
        from minattn.transformer.pretrained import load
        from minattn.transformer.pretrained.packing import pack_model

        self._load, self.weights = load, weights
        toy = Config(vocab=8192, context=2 * CHUNK, layers=1, heads=2, kv_heads=1, d_model=512, d_mlp=512,
                     norm="rms", activation="swiglu", position="rope", bias=False)
        self.model: Any = pack_model(GPT(toy, rng=np.random.default_rng(0)).eval(), weights)
        self.step([1], self.forward([1] * 2 * CHUNK)[1])
        self.model = None

    def load(self) -> None:
        self.model = self._load("smollm2", self.weights)

    def forward(self, ids: Any, last: bool = True, reserve: int = 0) -> tuple[int, Any]:
        """The most likely token after `ids`, and the cache that holds them, with room for `reserve`."""
        from minattn.attention import AppendCache

        return self.step(ids, [AppendCache(reserve) for _ in self.model.blocks], last)

    def step(self, ids: Any, cache: Any, last: bool = True) -> tuple[int, Any]:
        import numpy as np

        from minattn.autograd import no_grad

        with no_grad():
            run = self.model.next_logits if last else self.model
            logits = run(np.array([ids]), caches=cache).data
        return int(logits.reshape(-1, logits.shape[-1])[-1].argmax()), cache

    def sizes(self, cache: Any) -> tuple[int, int]:
        """Bytes of the weights and of the cache."""
        arrays = [p.data for p in self.model.parameters()] + [a for _, a in self.model.named_buffers()]
        return sum({id(a): a.nbytes for a in arrays}.values()), sum(c.memory for c in cache)


class Theirs:
    """The same model in transformers."""

    def __init__(self, path: str, threads: int) -> None:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.set_num_threads(threads)
        self.torch, self._class, self.path = torch, AutoModelForCausalLM, Path(path)
        toy = LlamaConfig(vocab_size=8192, hidden_size=512, intermediate_size=512, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1)
        self.model = AutoModelForCausalLM.from_config(toy).eval()
        self.step([1], self.forward([1] * 2 * CHUNK)[1])
        self.model = None

    def load(self) -> None:
        self.model = self._class.from_pretrained(self.path.parent, gguf_file=self.path.name,
                                                 dtype=self.torch.float32).eval()

    def forward(self, ids: Any, last: bool = True, reserve: int = 0) -> tuple[int, Any]:
        return self.step(ids, None, last)

    def step(self, ids: Any, cache: Any, last: bool = True) -> tuple[int, Any]:
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([ids]), past_key_values=cache, use_cache=True,
                             logits_to_keep=int(last))
        return int(out.logits[0, -1].argmax()), out.past_key_values

    def sizes(self, cache: Any) -> tuple[int, int]:
        return (sum(p.nbytes for p in self.model.parameters()),
                sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))


def work(side: Any, command: str, prompt: list[int]) -> dict:
    """Do what `command` says and tell how long it took, and what came out."""
    if command in ("decode", "memory"):
        return write(side, prompt)
    start = time.perf_counter()
    if command == "load":
        side.load()
        return {"seconds": time.perf_counter() - start}
    token, _ = side.forward(prompt, last=command == "prefill, last logits")
    return {"seconds": time.perf_counter() - start, "found": [token]}


def write(side: Any, prompt: list[int]) -> dict:
    """Continue the prompt greedily."""
    token, cache = side.forward(prompt[:CHUNK], reserve=len(prompt) + WRITTEN)
    for at in range(CHUNK, len(prompt), CHUNK):
        token, cache = side.step(prompt[at : at + CHUNK], cache)
    found = []
    start = time.perf_counter()
    for _ in range(WRITTEN):
        found.append(token)
        token, cache = side.step([token], cache)
    seconds = (time.perf_counter() - start) / WRITTEN
    weights, cached = side.sizes(cache)
    return {"seconds": seconds, "found": found, "peak": memory("VmHWM"), "weights": weights, "cache": cached}


def memory(what: str) -> int:
    """Bytes that the process has in memory now (VmRSS), or had at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def serve(name: str, path: str, threads: int) -> None:
    """A worker: commands come in by line, answers go out as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    side = Theirs(path, threads) if name == PEER else Ours(name)
    print(json.dumps({"imported": memory("VmRSS")}), file=answers, flush=True)
    for line in sys.stdin:
        command, prompt = json.loads(line)
        print(json.dumps(work(side, command, prompt)), file=answers, flush=True)


# ---- who tells them


class Worker:
    """A process with one side in it."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1",
                       **{f"{x}_NUM_THREADS": str(threads) for x in ("OMP", "OPENBLAS", "MKL", "NUMBA")}}
        command = [sys.executable, __file__, "--worker", name, "--path", path, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=environment)
        self.imported = self._answer()["imported"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self.process.wait()}: {self.process.args}")
        return json.loads(line)

    def tell(self, command: str, prompt: list[int]) -> dict:
        print(json.dumps([command, prompt]), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(repeats: int, threads: int) -> tuple[dict, dict]:
    """Seconds of each command on each side in all rounds, and what the memory run of each said."""
    path = str(gguf_file())
    prompt = tokens(PROMPT)
    commands = {"prefill": prompt, "prefill, last logits": prompt, "decode": prompt[:WRITTEN]}
    times: dict[str, dict[str, list[float]]] = {c: {n: [] for n in NAMES} for c in ("load", *commands)}
    memories, workers = {}, {}
    for repeat in range(repeats):
        for name in NAMES:
            worker = Worker(name, path, threads)
            times["load"][name].append(worker.tell("load", [])["seconds"])
            if repeat == repeats - 1:
                memories[name] = worker.tell("memory", prompt[:-WRITTEN]) | {"imported": worker.imported}
                workers[name] = worker
            else:
                worker.close()
    for repeat in range(-1, repeats):  # the first round warms up
        for command, ids in commands.items():
            answers = {name: workers[name].tell(command, ids) for name in NAMES}
            for name, answer in answers.items():
                if repeat >= 0:
                    times[command][name].append(answer["seconds"])
            if answers["float32"]["found"] != answers[PEER]["found"]:
                print(f"{command}: tokens differ, {answers['float32']['found']}, {answers[PEER]['found']}")
    for worker in workers.values():
        worker.close()
    return times, memories


def gguf_file() -> Path:
    """The file that both sides read."""
    from minattn.transformer.pretrained.smollm2 import path

    return path()


def tokens(n: int) -> list[int]:
    """The first tokens of Hamlet."""
    from minattn.data import shakespeare
    from minattn.transformer.pretrained import load

    return load("smollm2", "q4").tokenizer.encode(shakespeare()[: 8 * n])[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, args.path, args.threads)
        return
    times, memories = measure(args.repeats, args.threads)
    for command, found in times.items():
        for name in FORMS:
            pair = {name: found[name], PEER: found[PEER]}
            report(f"SmolLM2-135M, {command}, weights in {name}", pair, ours=name, json=args.json)
    for name, m in memories.items():
        peak = m["peak"] - m["imported"]
        print(f"\nmemory of {name}: weights {m['weights'] / 1e6:.0f} MB, cache {m['cache'] / 1e6:.0f} MB")
        allowed = 1.1 * m["weights"] + m["cache"]
        report(f"SmolLM2-135M, memory, {name}", {"peak": [peak], "1.1 w + cache": [allowed]}, ours="peak",
               unit="MB", json=args.json)


if __name__ == "__main__":
    main()
