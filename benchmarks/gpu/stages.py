#!/usr/bin/env python3
"""Try tracereplay on a CUDA vLLM, stage by stage; never let one stage's failure stop the others.

    python stages.py --kit KIT --tree REPO --out OUT [--only A,B1] [--deadline SECONDS] [--jobs N]
    python stages.py --cpu ENGINE_JSON ...      the same stages on a registered CPU engine: a rehearsal

KIT holds site/ (unpacked parts), and gets tr/ (the product, laid out for importing), home/ (its registry), models/ and
work/ (traces). OUT gets results.json, rewritten after every stage, and logs/. A stage is a function below; it returns a
dict that must hold "ok". Stages that need what another makes name it in NEEDS and are skipped if it failed.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
SMALL = {
    "layers": 4,
    "hidden": 1024,
    "heads": 16,
    "kv-heads": 8,
    "head-dim": 64,
    "intermediate": 3072,
    "vocab": 8192,
}
BIG = {
    "layers": 16,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 64,
    "intermediate": 8192,
    "vocab": 32000,
}
TINY = {"layers": 3, "hidden": 256, "heads": 4, "kv-heads": 2, "head-dim": 64, "intermediate": 512, "vocab": 1024}
TINY_BIG = {
    "layers": 3,
    "hidden": 256,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "intermediate": 512,
    "vocab": 1024,
}
LENGTHS = (5, 17, 64, 300, 33, 120)
# What no flashinfer, deep_gemm, network or usage report asks for. The product sets some of these itself.
GPU_ENV = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_DEEP_GEMM_WARMUP": "skip",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
RECORD_BLOCKS = {"sites": ["*norm*", "*.o_proj", "*.down_proj"], "sides": ["out"]}


class Failed(Exception):
    pass


class Box:
    """What all stages share."""

    def __init__(self, a):
        self.kit, self.tree, self.out = a.kit.resolve(), a.tree.resolve(), a.out.resolve()
        self.cpu = json.loads(a.cpu.read_text()) if a.cpu else None
        self.cpu_second = json.loads(a.cpu_second.read_text()) if a.cpu_second else None
        self.logs, self.work, self.models = self.out / "logs", self.kit / "work", self.kit / "models"
        for path in (self.logs, self.work, self.models):
            path.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.deadline = a.deadline
        self.lengths = [int(n) for n in a.lengths.split(",")]
        self.first = a.vllm
        self.second = a.second
        if self.cpu:
            self.python, env, settings = (
                self.cpu["python"],
                dict(self.cpu["env"]),
                dict(self.cpu.get("settings", {})),
            )
        else:
            self.python = sys.executable
            env = {**GPU_ENV, "PYTHONPATH": self.site(self.first)}
            settings = {"kv_cache_memory_bytes": 2 << 30, "gpu_memory_utilization": 0.2}
        self.env = env
        self.settings = {
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 1024,
            **settings,
        }
        self.processes = set()

    def site(self, version):
        return f"{self.kit}/site/v-{version}:{self.kit}/site/base"

    def left(self):
        return self.deadline - (time.monotonic() - self.started)

    def run(self, name, command, env, limit):
        """(exit code, stdout, seconds); all that it prints goes to logs/NAME.log. Ends its whole process group in time."""
        log = self.logs / f"{name}.log"
        limit = max(1.0, min(limit, self.left()))
        began = time.monotonic()
        with log.open("ab") as file:
            file.write(f"$ {' '.join(map(str, command))}\n".encode())
            file.flush()
            process = subprocess.Popen(
                [str(c) for c in command],
                stdout=subprocess.PIPE,
                stderr=file,
                env=env,
                start_new_session=True,
                cwd="/tmp",
            )
            self.processes.add(process.pid)
            try:
                out, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)  # Python prints where it was
                time.sleep(2)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                out, _ = process.communicate()
                file.write(f"\nstopped after {limit:.0f} s\n".encode())
                file.write(out)
                raise Failed(f"{name}: stopped after {limit:.0f} s: {self.tail(name)}")
            finally:
                self.processes.discard(process.pid)
            file.write(out)
        return process.returncode, out.decode(errors="replace"), round(time.monotonic() - began, 1)

    def tail(self, name, lines=6):
        text = (self.logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        words = ("Error", "error:", "refus", "cannot", "failed")
        marked = [x for x in text[-120:] if any(w in x for w in words)][-3:]
        return " | ".join(dict.fromkeys(x.strip()[:300] for x in [*marked, *text[-lines:]]))[-1500:]

    def cli(self, name, *arguments, limit=120, codes=(0,), env=None):
        """The product's command line, with ``env`` for a command that it records. Exit codes outside ``codes`` fail
        the stage."""
        env = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **(env or {})}
        env |= {"TRACEREPLAY_HOME": str(self.kit / "home"), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        code, out, seconds = self.run(name, [sys.executable, HERE / "tr.py", self.kit, *arguments], env, limit)
        if codes is not None and code not in codes:
            raise Failed(f"{name}: exit {code}: {self.tail(name)}")
        return code, out, seconds

    def probe(self, name, limit=120, env=None, **ask):
        """Plain generation in the engine's Python, no tracereplay."""
        ask = {
            "model": str(self.model()),
            "settings": self.settings,
            "prompts": self.prompts(),
            "max_tokens": 12,
            **ask,
        }
        merged = {**os.environ, **self.env, **(env or {})}
        code, out, seconds = self.run(name, [self.python, HERE / "probe.py", json.dumps(ask)], merged, limit)
        lines = [x for x in out.splitlines() if x.startswith("{")]
        if code or not lines:
            raise Failed(f"{name}: exit {code}: {self.tail(name)}")
        return {**json.loads(lines[-1]), "seconds": seconds}

    def model(self):
        return self.models / "small"

    def prompts(self):
        state, found = 12345, []
        for length in self.lengths:
            ids = []
            for _ in range(length):
                state = (state * 1103515245 + 12345) & 0x7FFFFFFF
                ids.append(state // 7 % 256)
            found.append(ids)
        return found

    def prompt_file(self):
        path = self.work / "prompts.jsonl"
        path.write_text(
            "".join(
                json.dumps(
                    {
                        "prompt_token_ids": ids,
                        "max_tokens": 12,
                        "temperature": 0.0,
                        "ignore_eos": True,
                        "logprobs": 1,
                    }
                )
                + "\n"
                for ids in self.prompts()
            )
        )
        return path

    def sets(self, **settings):
        return [
            x
            for k, v in settings.items()
            for x in ("--set", f"{k}={json.dumps(v) if not isinstance(v, str) else v}")
        ]

    def record(self, name, engine="gpu", observer=False, limit=120, codes=(0,), extra=(), **settings):
        trace = self.work / f"{name}.trace"
        code, out, seconds = self.cli(
            name,
            "record",
            "-o",
            trace,
            "--engine",
            engine,
            "--model",
            self.model(),
            "--prompts",
            self.prompt_file(),
            "--log",
            self.logs / f"{name}-engine.log",
            "--force",
            *(["--check-observer"] if observer else []),
            *extra,
            *self.sets(**settings),
            limit=limit,
            codes=codes,
        )
        found = {"code": code, "seconds": seconds}
        with contextlib.suppress(OSError, ValueError, KeyError):
            run = json.loads((trace / "manifest.json").read_text())["run"]
            found["observer"] = run.get("observer")
            found["notes"] = run.get("notes", [])[:5]
            found["settings"] = {
                k: run["engine"]["settings"].get(k)
                for k in ("attention_backend", "async_scheduling", "compilation_mode", "cudagraph_mode")
            }
        if trace.exists():
            found["mib"] = round(sum(f.stat().st_size for f in trace.rglob("*") if f.is_file()) / 2**20, 2)
        return found

    def replay(self, name, golden, engine="gpu", limit=150, **settings):
        verdict = self.logs / f"{name}.json"
        code, out, seconds = self.cli(
            name,
            "replay",
            golden,
            "--engine",
            engine,
            "--json",
            verdict,
            "--log",
            self.logs / f"{name}-engine.log",
            "-o",
            self.work / f"{name}.trace",
            "--force",
            *self.sets(**settings),
            limit=limit,
            codes=(0, 1, 2, 3, 4, 5, 6),
        )
        found = {"code": code, "seconds": seconds}
        if not verdict.exists():
            return {**found, "verdict": None, "said": self.tail(name)}
        said = json.loads(verdict.read_text())
        first = said.get("first_divergence")
        operators = said.get("operators") or []
        return {
            **found,
            "verdict": said["verdict"],
            "cause": said.get("cause"),
            "reasons": said.get("reasons", [])[:3],
            "first": first and {k: first.get(k) for k in ("site", "operator", "step", "position")},
            "classes": {
                c: sum(o.get("class") == c for o in operators)
                for c in dict.fromkeys(o.get("class") for o in operators)
            },
            "tokens": said.get("tokens"),
            "coverage": said.get("coverage"),
            "notes": said.get("notes", [])[:4],
        }


# -- the stages ---------------------------------------------------------------------------------------------


def facts(box):
    """A0: the machine, in words."""
    code = (
        "import json,sys,importlib.metadata as m\n"
        "names=['torch','triton','transformers','numpy','numba','vllm','protobuf','pydantic','xgrammar','msgpack','xxhash','ml-dtypes']\n"
        "v={}\nfor n in names:\n  try: v[n]=m.version(n)\n  except Exception: v[n]=None\n"
        "import torch\nv['cuda']=torch.version.cuda\nv['gpu']=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None\n"
        "v['free']=torch.cuda.mem_get_info()[0]>>30 if torch.cuda.is_available() else None\nprint(json.dumps(v))"
    )
    code, out, seconds = box.run("facts", [box.python, "-c", code], {**os.environ, **box.env}, 60)
    found = json.loads(out.strip().splitlines()[-1])
    memlock = subprocess.run(
        ["sh", "-c", "ulimit -l; nproc; df -BG --output=avail /dev/shm | tail -1"], capture_output=True, text=True
    )
    return {"ok": code == 0, **found, "memlock_nproc_shm": memlock.stdout.split()}


def plain_eager(box):
    """A: vLLM alone generates, eagerly, twice the same."""
    try:
        found = box.probe("plain-eager", limit=240 if box.cpu else 120, repeat=2)
    except Failed as error:
        if box.cpu or box.left() < 120:
            raise
        # FlashAttention's kernels were thinned out by hand; Triton's are compiled where they run.
        box.settings["attention_backend"] = "TRITON_ATTN"
        found = {**box.probe("plain-triton", limit=120, repeat=2), "said": f"default attention: {error}"}
    (box.work / "plain.json").write_text(json.dumps(found.pop("runs")))
    return {"ok": found["repeatable"], **found}


def register(box):
    """B0: the engines get their names."""
    faulty = {
        **box.env,
        "PYTHONPATH": os.pathsep.join(p for p in (str(HERE / "fault"), box.env.get("PYTHONPATH")) if p),
    }
    v2 = {**box.env, "VLLM_USE_V2_MODEL_RUNNER": "1"}
    engines = {"gpu": box.env, "gpu-fault": faulty, "gpu-graphs": box.env, "gpu-v2": v2, "gpu-v2-graphs": v2}
    engines["gpu-invariant"] = {**box.env, "VLLM_BATCH_INVARIANT": "1"}
    pythons = {}
    if box.cpu:  # there all but the V1 runner in step needs a stand-in for a GPU, whose graphs are those of V2
        tests = box.tree / "tests" / "engine"
        path = os.pathsep.join(filter(None, (str(tests / "stand_in"), str(tests), box.env.get("PYTHONPATH"))))
        v2 |= {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "STAND_IN_ASYNC": "1"}
        graphs = {**v2, "STAND_IN_GRAPHS": "FULL_AND_PIECEWISE", "VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}
        engines["gpu-graphs"] = engines["gpu-v2-graphs"] = {**graphs, "STAND_IN_LATE": "7"}
        if box.cpu_second:
            pythons = dict.fromkeys(("gpu-second", "gpu-second-invariant"), box.cpu_second["python"])
            engines["gpu-second"] = dict(box.cpu_second["env"])
    elif (box.kit / "site" / f"v-{box.second}").is_dir():
        engines["gpu-second"] = {**box.env, "PYTHONPATH": box.site(box.second)}
    if "gpu-second" in engines:
        engines["gpu-second-invariant"] = {**engines["gpu-second"], "VLLM_BATCH_INVARIANT": "1"}
    for name, env in engines.items():
        pairs = [x for k, v in env.items() for x in ("--env", f"{k}={v}")]
        box.cli(
            f"add-{name}",
            "engine",
            "add",
            name,
            "--python",
            pythons.get(name, box.python),
            *pairs,
            *box.sets(**box.settings),
            limit=60,
        )
    code, out, seconds = box.cli("list", "engine", "list")
    return {"ok": True, "engines": sorted(engines), "seconds": seconds}


def doctor(box):
    """B1: what the doctor says (it starts the engine too)."""
    code, out, seconds = box.cli("doctor", "engine", "doctor", "gpu", limit=120, codes=None)
    return {"ok": code == 0, "code": code, "seconds": seconds, "said": box.tail("doctor", 12)}


def record_eager(box):
    """B2: an eager recording changes no token and no logprob."""
    found = box.record("eager", observer=True, limit=180)
    return {"ok": changes_nothing(found), **found}


def verify(box):
    """B3: the recording is whole, and holds no operator that did not run."""
    code, out, seconds = box.cli("verify", "verify", box.work / "eager.trace", limit=60, codes=None)
    return {"ok": code == 0, "seconds": seconds, "said": box.tail("verify", 4)}


def replay_same(box):
    """B4: the same engine replays its own recording: match, all identical."""
    found = box.replay("same", box.work / "eager.trace")
    return {"ok": found["verdict"] == "match", **found}


def replay_fault(box):
    """B5: a planted fault (3 % too much after SiLU) is named."""
    found = box.replay("fault", box.work / "eager.trace", "gpu-fault")
    first = (found.get("first") or {}).get("site") or ""
    return {"ok": found["verdict"] == "diverged" and first.endswith("act_fn"), **found}


def record_kernels(box):
    """B6: level kernel records and verifies."""
    found = box.record("kernels", extra=("--level", "kernel"), limit=150)
    return {"ok": found["code"] == 0, **found, **names_of_kernels(box, "kernels")}


def names_of_kernels(box, name):
    product(box)
    from collections import Counter

    from tracereplay import open_trace

    trace = open_trace(box.work / f"{name}.trace")
    names = Counter(k.name for step in trace.steps("record") for k in step.kernels)
    launched = {n: c for n, c in names.items() if n.startswith("triton.")}
    return {
        "kernels": sum(names.values()),
        "kinds": len(names),
        "triton": launched,
        "most": dict(names.most_common(12)),
    }


def record_triton(box):
    """B7: level kernel with Triton's attention: launches past the dispatcher are named."""
    found = box.record("triton-kernels", extra=("--level", "kernel"), limit=150, attention_backend="TRITON_ATTN")
    found |= names_of_kernels(box, "triton-kernels")
    return {"ok": found["code"] == 0 and bool(found["triton"]), **found}


def record_compiled(box):
    """C1: compiled without graphs; what recording changes there."""
    found = box.record("compiled", observer=True, limit=240, enforce_eager=False, compilation_config=NO_GRAPHS)
    return {"ok": found["code"] == 0, **found}


def replay_compiled(box):
    """C2: eager golden replayed compiled."""
    found = box.replay(
        "to-compiled", box.work / "eager.trace", limit=240, enforce_eager=False, compilation_config=NO_GRAPHS
    )
    return {"ok": found["verdict"] is not None, **found}


def graphs_plain(box):
    """D1: vLLM's default, with CUDA graphs, without tracereplay."""
    settings = {
        **box.settings,
        "enforce_eager": False,
        "compilation_config": GRAPHS,
    }
    found = box.probe("graphs", settings=settings, repeat=2, limit=240)
    eager = json.loads((box.work / "plain.json").read_text())[0]
    mine = found.pop("runs")[0]
    found["tokens_as_eager"] = sum(a["tokens"] == b["tokens"] for a, b in zip(eager, mine)), len(mine)
    return {"ok": True, **found}


def changes_nothing(found):
    """Whether a recording was beside a run without taps, and no token and no logprob differs."""
    seen = found.get("observer") or {}
    drift = (seen.get("logprob_abs_diff") or {}).get("max")
    return seen.get("tokens_differ") == 0 and drift in (0, 0.0)


def with_graphs(box, **compilation):
    """Arguments of an engine that captures graphs. The stand-in for a GPU has none of a compiler's pieces."""
    given = {**GRAPHS, **({"mode": 0} if box.cpu else {}), **compilation}
    return {"enforce_eager": False, "compilation_config": given}


def graphs_record(box):
    """D2: recording all operators inside CUDA graphs: what it changes is what taps keep the compiler from fusing."""
    found = box.record("graphs-recorded", "gpu-graphs", observer=True, limit=240, **with_graphs(box))
    return {"ok": (found.get("observer") or {}).get("tokens_differ") == 0, **found}


UNFUSED = ("--sites", "*_proj", "--sites", "*.attn", "--sites", "lm_head")


def graphs_unfused(box):
    """D5: taps at linear layers, attention and logits alone change nothing under vLLM's defaults."""
    found = box.record("graphs-unfused", "gpu-graphs", observer=True, limit=240, extra=UNFUSED, **with_graphs(box))
    return {"ok": changes_nothing(found), **found}


def graphs_replay(box):
    """D3: an engine with graphs replays its own recording: fed inside the graphs, every operator repeats itself."""
    golden = box.work / "graphs-recorded.trace"
    found = box.replay("graphs-same", golden, "gpu-graphs", limit=240, **with_graphs(box))
    return {"ok": found["verdict"] == "match", **found}


def eager_to_graphs(box):
    """D4: the eager golden recording under graphs without a compiler's pieces: attention may round otherwise."""
    settings = with_graphs(box, mode=0, cudagraph_mode="FULL_DECODE_ONLY")
    found = box.replay("eager-to-graphs", box.work / "eager.trace", "gpu-graphs", limit=240, **settings)
    return {"ok": found["verdict"] == "match" or found["cause"] == "rounding", **found}


def graphs_v2(box):
    """E6: the same as D2 under Model Runner V2."""
    found = box.record("graphs-v2", "gpu-v2-graphs", observer=True, limit=240, **with_graphs(box))
    return {"ok": changes_nothing(found), **found}


def served(box):
    """R1: a command of the user's under vLLM's defaults (Model Runner V2, graphs, asynchronous), chosen requests."""
    return recorded_command(box, "served", "--requests", "[024]*", "--when-behind", "block")


def ring(box):
    """R2: the same command under the flight recorder: an improbable token makes a trace."""
    return recorded_command(
        box, "ring", "--ring", "64MB,500steps", "--trigger", "logprob<-0.5", "--trigger-after", "2"
    )


def recorded_command(box, name, *options):
    """A recording of `probe.py`, and how its answers compare with those of the same command alone."""
    engine = {**box.settings, **with_graphs(box)}
    ask = {
        "model": str(box.model()),
        "settings": engine,
        "prompts": box.prompts(),
        "max_tokens": 12,
        "recorded": True,
    }
    registered = json.loads((box.kit / "home" / "engines" / "gpu-v2-graphs.json").read_text())
    env, trace = dict(registered["env"]), box.work / name
    if box.cpu:  # the stand-in is made with the product's own reader
        env["PYTHONPATH"] = os.pathsep.join((env["PYTHONPATH"], str(box.kit / "tr")))
    shutil.rmtree(trace, ignore_errors=True)
    alone = box.probe(f"{name}-alone", limit=150, env=env, settings=engine)
    _, out, seconds = box.cli(
        name, "record", "-o", trace, *options, "--", box.python, HERE / "probe.py", json.dumps(ask),
        limit=200, env=env,
    )  # fmt: skip
    beside = json.loads([x for x in out.splitlines() if x.startswith('{"import_s"')][-1])
    traces = [trace] if (trace / "manifest.json").exists() else sorted(trace.glob("*.trace"))
    checked = [box.cli(f"{name}-verify", "verify", path, limit=60, codes=None)[0] for path in traces]
    product(box)
    from tracereplay import open_trace

    sizes = [open_trace(path) for path in traces]
    return {
        "ok": bool(traces) and not any(checked) and beside["runs"] == alone["runs"],
        "same_answers": beside["runs"] == alone["runs"],
        "verify": checked,
        "seconds": seconds,
        "generate_s": [alone["generate_s"], beside["generate_s"]],
        "mode": [beside[k] for k in ("cudagraph_mode", "async_scheduling", "v2_runner")],
        "traces": [[t.size >> 10, len(t.run.prompts), len(t.steps("record"))] for t in sizes],
        "notes": [str(note)[:200] for t in sizes for note in t.run.notes][:8],
    }  # fmt: skip


def async_on(box):
    """E1: asynchronous scheduling: the golden recording is replayed under it."""
    found = box.replay("async", box.work / "eager.trace", async_scheduling=True)
    return {"ok": found["verdict"] == "match", **found}


def async_record(box):
    """E2: a recording under asynchronous scheduling, compared with the one without it."""
    found = box.record("async-recorded", async_scheduling=True, observer=True, limit=180)
    seen = found.get("observer") or {}
    return {"ok": seen.get("tokens_differ") == 0, **found}


def runner_v2(box):
    """E3: recording under Model Runner V2, asynchronously as is its default, changes no token and no logprob."""
    found = box.record("runner-v2", "gpu-v2", observer=True, limit=180)
    return {"ok": changes_nothing(found), **found}


def replay_v2(box):
    """E4: Model Runner V2 replays its own recording."""
    found = box.replay("runner-v2-same", box.work / "runner-v2.trace", "gpu-v2")
    return {"ok": found["verdict"] == "match", **found}


def runner_v1_to_v2(box):
    """E5: the V1 runner's golden recording under Model Runner V2: the same operators, other kernels that sample."""
    found = box.replay("runner-v1-to-v2", box.work / "eager.trace", "gpu-v2")
    return {"ok": found["verdict"] == "match", **found}


def golden_cpu(box):
    """G: a trace recorded by vLLM V0 on a CPU, from the repository, replayed here."""
    trace = box.tree / "fixtures" / "tiny-llama-v0.trace"
    verdict = box.logs / "cpu-golden.json"
    code, out, seconds = box.cli(
        "cpu-golden",
        "replay",
        trace,
        "--engine",
        "gpu",
        "--model",
        box.tree / "fixtures" / "tiny-llama",
        "--json",
        verdict,
        "--log",
        box.logs / "cpu-golden-engine.log",
        limit=150,
        codes=(0, 1, 2, 3, 4, 5, 6),
    )
    if not verdict.exists():
        return {"ok": False, "code": code, "seconds": seconds, "said": box.tail("cpu-golden")}
    said = json.loads(verdict.read_text())
    return {
        "ok": True,
        "code": code,
        "seconds": seconds,
        "verdict": said["verdict"],
        "cause": said.get("cause"),
        "first": said.get("first_divergence") and said["first_divergence"].get("site"),
        "reasons": said.get("reasons", [])[:4],
        "tokens": said.get("tokens"),
    }


def other_attention(box):
    """H: the same recording under the other attention backend."""
    found = box.replay("attention", box.work / "eager.trace", attention_backend="TRITON_ATTN")
    return {"ok": found["verdict"] is not None, **found}


def other_version(box):
    """V: the recording of one vLLM version replayed under the other."""
    found = box.replay("version", box.work / "eager.trace", "gpu-second", limit=180)
    return {"ok": found["verdict"] is not None, **found}


def invariance(box, engine="gpu", name="invariance"):
    """I0: without the mode: which operators depend on the batch at all. Any answer is one; no answer is a failure."""
    path, out = box.work / f"{name}.jsonl", box.logs / f"{name}.json"
    # Prompts on both sides of 256 rows, at which vLLM's norm with a residual changed its reduction (issue 48271).
    path.write_text(
        "".join(
            json.dumps({"prompt_token_ids": [(7 * i + 13 * n) % 251 for i in range(n)], "ignore_eos": True}) + "\n"
            for n in (255, 256, 257)
        )
    )
    code, _, seconds = box.cli(
        name,
        "invariance",
        box.model(),
        "--engine",
        engine,
        "--prompts",
        path,
        "--max-tokens",
        4,
        "--vary",
        "batch,order,chunks,cache",
        "--json",
        out,
        "--log",
        box.logs / f"{name}-engine.log",
        limit=150,
        codes=(0, 1, 2, 3, 4),
    )
    if not out.exists():  # such as a version that cannot run the mode: its own words are the finding
        return {"ok": False, "code": code, "seconds": seconds, "said": box.tail(name)}
    found = json.loads(out.read_text())
    return {
        "ok": True,
        "code": code,
        "seconds": seconds,
        "invariant": found["invariant"],
        "held": {v["what"]: v["held"] if v["held"] is not None else v["reason"] for v in found["varied"]},
        "first": found["first"],
        "operators": found["operators"][:12],
    }


def invariance_mode(box):
    """I1: VLLM_BATCH_INVARIANT=1. Before vLLM's mend of its issue 48271: RMSNorm, flips at 256 rows."""
    return invariance(box, "gpu-invariant", "invariance-mode")


def invariance_mode_second(box):
    """I2: the same in the other version."""
    return invariance(box, "gpu-second-invariant", "invariance-mode-second")


def product(box):
    """Makes the product importable here."""
    if str(box.kit / "tr") not in sys.path:
        sys.path[:0] = [str(box.kit / "tr")]
        sys.path += [str(box.kit / "site" / "base")]
    os.environ["TRACEREPLAY_HOME"] = str(box.kit / "home")


def guest(box, name="gpu"):
    """A registered engine, and what the environment of its processes is."""
    product(box)
    from tracereplay.environments.registry import load_engine
    from tracereplay.launch.process import guest_environment

    engine = load_engine(name)
    base = os.environ.pop("PYTHONPATH", None)
    env = guest_environment(engine)
    if base is not None:
        os.environ["PYTHONPATH"] = base
    return engine, env


class Guest:
    """An engine whose driver is bench_guest.py, spoken to in JSON lines."""

    def __init__(self, box, name, model, settings, limit, registered="gpu", extra=None):
        self.box, self.name = box, name
        self._log = (box.logs / f"{name}.log").open("wb")
        engine, env = guest(box, registered)
        env |= extra or {}
        self.process = subprocess.Popen(
            [str(engine.python), str(HERE / "bench_guest.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
            text=True,
            cwd="/tmp",
        )
        self._timer = threading.Timer(max(1, min(limit, box.left())), self.kill)
        self._timer.start()
        self.ask("start", model=str(model), settings={**engine.settings, **settings})

    def ask(self, what, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise Failed(f"{self.name}: the engine ended during {what}: {self.box.tail(self.name)}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}: {self.box.tail(self.name)}")
        return answer["ok"]

    def measured(self, prompts, trace, options, **more):
        """A generation, recorded into ``trace`` unless ``options`` are None; what came of it, and its figures."""
        recording = None
        if options is not None:
            shutil.rmtree(trace, ignore_errors=True)
            trace.mkdir(parents=True)
            recording = {  # as `tracereplay.engines.request` has it
                "trace": str(trace),
                "name": "record",
                "golden": None,
                "feed": None,
                "options": options,
                "serving": {"groups": None, "cleared": "pass"},
            }
        result = self.ask("generate", prompts=prompts, recording=recording, **more)
        steps = result["steps"]
        size = sum(f.stat().st_size for f in trace.rglob("*") if f.is_file()) if trace.exists() else 0
        errors = {t: n for r in result.get("ranks", []) if r for t, n in r.get("errors", {}).items()}
        shutil.rmtree(trace, ignore_errors=True)
        return (
            result,
            {
                "prefill_ms": round(1e3 * steps[0], 2),
                "decode_ms": round(1e3 * median(steps[2:-1]), 3),  # the last one may be a step without a forward
                "decode_mean_ms": round(1e3 * sum(steps[1:]) / max(1, len(steps) - 1), 3),
                "whole_s": round(result["whole_s"], 2),
                "mib": round(size / 2**20, 1),
                "peak_mib": result["peak_mib"],
                **({"errors": errors} if errors else {}),
            },
        )

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self):
        self._timer.cancel()
        self.kill()
        self.process.wait()
        self._log.close()


def asked(batch, prompt, decode):
    """That many requests of ``prompt`` tokens, for ``decode`` steps after the prefill."""
    sampling = {"temperature": 0.0, "max_tokens": decode + 1, "ignore_eos": True, "logprobs": 1}
    return [
        {"prompt_token_ids": [(7 * i + 13 * j) % 251 for j in range(prompt)], "sampling": sampling}
        for i in range(batch)
    ]


def ratios(rows):
    """Median decode steps, x that of the better of the bare runs."""
    base = min((row["decode_ms"] for row in rows.get("bare", [])), default=0) or 1e-9
    return {kind: round(min(row["decode_ms"] for row in each) / base, 2) for kind, each in rows.items()}


def median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else 0.0


def overhead(box):
    """F: what recording costs a decode step and a prefill, and where the time of one recorded step goes."""
    model, found = box.models / "big", {}
    make_big(box, model)
    batches = (1, 8, 64) if not box.cpu else (1, 4)
    decode, prompt = (24, 64) if not box.cpu else (6, 16)
    room = {} if box.cpu else {"kv_cache_memory_bytes": 8 << 30, "gpu_memory_utilization": 0.4}
    settings = {
        **room,
        "max_num_seqs": 4 if box.cpu else 64,
        "max_num_batched_tokens": 1024 if box.cpu else 8192,
        "async_scheduling": False,
    }
    guest = Guest(box, "overhead", model, settings, 240)
    try:
        for batch in batches:
            prompts = asked(batch, prompt, decode)
            rows, tokens = {}, {}
            order = ("bare", "idle", "blocks", "all", "memory", "raw", "bare", "all")
            for number, kind in enumerate(order):
                # "memory" and "raw" do not wait for the disk; "raw" does not compress either
                folder = Path("/dev/shm") if kind in ("memory", "raw") else box.work
                trace = folder / f"bench-{batch}-{number}.trace"
                options = RECORD_BLOCKS if kind == "blocks" else {"codec": 0} if kind == "raw" else {}
                profile_at = 6 if (number == len(order) - 1 and batch == 8) or (box.cpu and number == 7) else None
                result, row = guest.measured(
                    prompts,
                    trace,
                    None if kind in ("bare", "idle") else options,
                    profile_at=profile_at,
                    bare=kind == "bare",
                )
                if profile_at is None:
                    rows.setdefault(kind, []).append(row)
                else:
                    rows["profiled"] = [row]
                    found[f"profile_{batch}"] = result.get("profile")
                tokens.setdefault(kind, result["requests"])
            found[f"batch_{batch}"] = rows
            found[f"same_{batch}"] = all(t == tokens["bare"] for t in tokens.values())
            found[f"ratio_{batch}"] = ratios(rows)
    finally:
        guest.close()
    return {"ok": all(v for k, v in found.items() if k.startswith("same_")), **found}


def overhead_graphs(box):
    """FG: what recording costs a decode step under vLLM's defaults: Model Runner V2, graphs, asynchronously.

    What a graph copies is decided when it is captured, so each kind is an engine of its own: without taps, with all
    operators' (idle, then recorded whole, then every tenth step), with block outputs' (idle, recorded).
    """
    model, found = box.models / "big", {}
    make_big(box, model)
    batches, decode, prompt = ((1, 8, 64), 48, 64) if not box.cpu else ((1, 4), 6, 16)
    room = {} if box.cpu else {"kv_cache_memory_bytes": 8 << 30, "gpu_memory_utilization": 0.4}
    sizes = {"cudagraph_capture_sizes": [1, 8, 64] if not box.cpu else [1, 4]}
    settings = {
        **room,
        **with_graphs(box, **sizes),
        "max_num_seqs": 4 if box.cpu else 64,
        "max_num_batched_tokens": 1024 if box.cpu else 8192,
    }
    blocks = {"feeds": "nothing", **RECORD_BLOCKS}
    kinds = {
        "bare": ({"TRACEREPLAY_NO_TAPS": "1"}, (("bare", None), ("bare", None))),
        "all": (
            {"TRACEREPLAY_GRAPHS": json.dumps({"feeds": "nothing"})},
            (
                ("idle", None),
                ("all", {}),
                ("every_10", {"choice": {"every": 10}}),
                ("raw", {"codec": 0}),
                ("idle", None),
                ("all", {}),
            ),
        ),
        "blocks": (
            {"TRACEREPLAY_GRAPHS": json.dumps(blocks)},
            (("idle_blocks", None), ("blocks", RECORD_BLOCKS), ("idle_blocks", None), ("blocks", RECORD_BLOCKS)),
        ),
    }
    tokens = {}
    for name, (extra, passes) in kinds.items():
        try:
            began = time.monotonic()
            guest = Guest(box, f"graphs-{name}", model, settings, 200, "gpu-v2-graphs", extra)
            found[f"start_{name}_s"] = round(time.monotonic() - began, 1)
        except Failed as error:
            found[f"failed_{name}"] = str(error)[:600]
            continue
        try:
            for batch in batches:
                prompts = asked(batch, prompt, decode)
                guest.ask("generate", prompts=prompts, recording=None)  # warm
                for number, (kind, options) in enumerate(passes):
                    trace = Path("/dev/shm") / f"graphs-{name}-{batch}-{number}.trace"
                    result, row = guest.measured(prompts, trace, options)
                    found.setdefault(f"batch_{batch}", {}).setdefault(kind, []).append(row)
                    if kind in ("bare", "idle", "all", "blocks"):
                        tokens.setdefault(batch, {})[kind] = result["requests"]
        except Failed as error:
            found[f"failed_{name}"] = str(error)[:600]
        finally:
            guest.close()
    for batch in batches:
        found[f"ratio_{batch}"] = ratios(found.get(f"batch_{batch}", {}))
        given = tokens.get(batch, {})
        found[f"same_{batch}"] = {k: v == given.get("bare") for k, v in given.items()}
    return {"ok": not any(k.startswith("failed") for k in found), **found}


def injected(box):
    """FI: a replay of the larger model by the engine that recorded it, eager, then under vLLM's defaults: seconds of
    plain generation, recording and each pass."""
    product(box)
    model, found = box.models / "big", {}
    make_big(box, model)
    sys.path[:0] = [str(HERE.parent)] if (HERE.parent / "replays.py").exists() else [str(HERE)]
    import replays

    from tracereplay.launch import Configured
    from tracereplay.trace import open_trace
    from tracereplay.workload import Prompt

    batch, decode, prompt = (8, 64, 64) if not box.cpu else (2, 6, 16)
    room = {} if box.cpu else {"kv_cache_memory_bytes": 8 << 30, "gpu_memory_utilization": 0.4}
    sampling = {"temperature": 0.0, "max_tokens": decode, "ignore_eos": True, "logprobs": 0}
    prompts = [Prompt(replays.token_ids(prompt, i), None, sampling) for i in range(batch)]
    asked = [one.as_dict() for one in prompts]
    for name in ("gpu", "gpu-v2-graphs"):
        graphs = (
            with_graphs(box, cudagraph_capture_sizes=[1, 8] if not box.cpu else [1, 2]) if "graphs" in name else {}
        )
        engine = replays.find(name, **{"enforce_eager": True, **graphs, **room})
        env = {**engine.env, "TRACEREPLAY_GRAPHS": '{"feeds": "golden"}'}
        engine = Configured(name, engine.python, env, engine.settings, engine.family)
        golden, candidate = Path(f"/dev/shm/injected-{name}.golden"), Path(f"/dev/shm/injected-{name}.candidate")
        for path in (golden, candidate):
            shutil.rmtree(path, ignore_errors=True)
        try:
            with replays.started(engine, model, box.logs) as process:
                plain = [process.generate(asked)["seconds"] for _ in range(3)][1:]
                began = time.monotonic()
                trace = replays.record(process, engine, model, prompts, golden)
                recording = float(trace.results["record"]["seconds"])
                whole_recording = time.monotonic() - began
                began = time.monotonic()
                verdict = replays.replay(process, engine, trace, model, candidate)
                whole_replay = time.monotonic() - began
                plain += [process.generate(asked)["seconds"]]
                passes = {k: float(v["seconds"]) for k, v in open_trace(candidate).results.items()}
            base = median(plain)
            found[name] = {
                "plain_s": [round(s, 3) for s in plain],
                "record_s": [round(recording, 3), round(whole_recording, 3)],
                "passes_s": {k: round(v, 3) for k, v in passes.items()},
                "replay_and_verdict_s": round(whole_replay, 3),
                "ratio": {k: round(v / base, 2) for k, v in {"record": recording, **passes}.items()},
                "mib": trace.size >> 20,
                "verdict": str(verdict.verdict),
            }
        except Exception as error:
            found[f"failed_{name}"] = traceback.format_exc()[-900:] + str(error)[-300:]
    return {"ok": not any(k.startswith("failed") for k in found), **found}


def host_cost(box):
    """F0: host microseconds of one recorded tensor."""
    engine, env = guest(box)
    code, out, seconds = box.run("host-cost", [engine.python, HERE / "host_cost.py"], env, 90)
    if code:
        raise Failed(f"host-cost: {box.tail('host-cost')}")
    return {"ok": True, **json.loads(out.strip().splitlines()[-1])}


NO_GRAPHS = {"cudagraph_mode": "NONE"}
GRAPHS = {"cudagraph_capture_sizes": [1, 2, 4, 8]}
# name -> (function, what must have succeeded, seconds it may take, whether it runs alone)
STAGES = {
    "A0": (facts, (), 60, True),
    "A": (plain_eager, (), 210, True),
    "B0": (register, (), 60, True),
    "B2": (record_eager, ("A", "B0"), 180, True),
    "B4": (replay_same, ("B2?",), 150, False),
    "B5": (replay_fault, ("B2?",), 150, False),
    "C1": (record_compiled, ("A", "B0"), 240, False),
    "E1": (async_on, ("B2?",), 150, False),
    "G": (golden_cpu, ("A", "B0"), 150, False),
    "H": (other_attention, ("B2?",), 150, False),
    "D2": (graphs_record, ("A", "B0"), 240, False),
    "D3": (graphs_replay, ("D2?",), 240, False),
    "D5": (graphs_unfused, ("A", "B0"), 240, False),
    "D4": (eager_to_graphs, ("B2?",), 240, False),
    "B3": (verify, ("B2?",), 60, False),
    "R1": (served, ("A", "B0"), 240, False),
    "R2": (ring, ("A", "B0"), 240, False),
    "C2": (replay_compiled, ("B2?",), 240, False),
    "V": (other_version, ("B2?",), 180, False),
    "D1": (graphs_plain, ("A",), 240, False),
    "E3": (runner_v2, ("A", "B0"), 180, False),
    "E6": (graphs_v2, ("A", "B0"), 240, False),
    "E4": (replay_v2, ("E3?",), 150, False),
    "E5": (runner_v1_to_v2, ("B2?",), 150, False),
    "E2": (async_record, ("A", "B0"), 180, False),
    "B6": (record_kernels, ("A", "B0"), 150, False),
    "B7": (record_triton, ("A", "B0"), 150, False),
    "B1": (doctor, ("B0",), 120, False),
    "I1": (invariance_mode, ("A", "B0"), 150, False),
    "I2": (invariance_mode_second, ("A", "B0"), 150, False),
    "I0": (invariance, ("A", "B0"), 150, False),
    "FG": (overhead_graphs, ("A", "B0"), 300, True),
    "F0": (host_cost, ("B0",), 90, True),
    "FI": (injected, ("A", "B0"), 240, True),
    "F": (overhead, ("A", "B0"), 240, True),
}


def make_small(box):
    size = TINY if box.cpu else SMALL
    if not (box.model() / "model.safetensors").exists():
        options = [x for k, v in size.items() for x in (f"--{k}", str(v))]
        subprocess.run(
            [sys.executable, box.tree / "fixtures" / "make_random_model.py", "llama", box.model(), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (box.model() / name).unlink(
            missing_ok=True
        )  # prompts are token ids; an engine then starts without a tokenizer


def make_big(box, path):
    """A model of about 1.1 billion parameters, made in seconds with torch."""
    if (path / "model.safetensors").exists():
        return
    s = TINY_BIG if box.cpu else BIG
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s["hidden"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"],
        "head_dim": s["head_dim"],
        "intermediate_size": s["intermediate"],
        "vocab_size": s["vocab"],
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
    }
    (path / "config.json").write_text(json.dumps(config))
    code = f"""
import torch
from safetensors.torch import save_file
s={s!r}; dev='cuda' if torch.cuda.is_available() else 'cpu'
torch.manual_seed(0); h,f=s['hidden'],s['intermediate']; q=s['heads']*s['head_dim']; k=s['kv_heads']*s['head_dim']
def r(*shape, std=0.02): return (torch.randn(*shape,device=dev)*std).to(torch.bfloat16).cpu().contiguous()
def one(): return (1+0.1*torch.randn(h,device=dev)).to(torch.bfloat16).cpu()
t={{'model.embed_tokens.weight':r(s['vocab'],h,std=1.0),'lm_head.weight':r(s['vocab'],h,std=3/h**.5),'model.norm.weight':one()}}
for i in range(s['layers']):
    p=f'model.layers.{{i}}.'
    t|={{p+'self_attn.q_proj.weight':r(q,h,std=h**-.5),p+'self_attn.k_proj.weight':r(k,h,std=h**-.5),
        p+'self_attn.v_proj.weight':r(k,h,std=h**-.5),p+'self_attn.o_proj.weight':r(h,q,std=q**-.5),
        p+'mlp.gate_proj.weight':r(f,h,std=h**-.5),p+'mlp.up_proj.weight':r(f,h,std=h**-.5),
        p+'mlp.down_proj.weight':r(h,f,std=f**-.5),p+'input_layernorm.weight':one(),p+'post_attention_layernorm.weight':one()}}
save_file(t, {str(path / "model.safetensors")!r})
"""
    code, out, seconds = box.run("make-big", [box.python, "-c", code], {**os.environ, **box.env}, 90)
    if code:
        raise Failed(f"make-big: {box.tail('make-big')}")


def lay_out(box, keep):
    """The product as a package that can be imported, without installing it; and a uv that has nothing to do."""
    target = box.kit / "tr"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(box.tree / "tracereplay", target / "tracereplay", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(box.tree / "cli", target / "tracereplay" / "cli", ignore=shutil.ignore_patterns("__pycache__"))
    (target / "tracereplay" / "fixtures").mkdir(exist_ok=True)
    info = target / "tracereplay-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tracereplay\nVersion: 0.1.0\n")
    if not box.cpu:  # the engine finds msgpack, zstandard and xxhash where the analyst's side does
        (target / "uv.py").write_text("def find_uv_bin():\n    return '/bin/true'\n")
    if not keep:
        shutil.rmtree(box.kit / "home", ignore_errors=True)


def ready(name, done):
    """None: wait; False: what it needs failed; True: go."""
    for need in STAGES[name][1]:
        state = done.get(need.rstrip("?"))
        if state is None:
            return None
        # "B2?": the recording need only be there, whatever was found in it
        if not (
            state.get("code") == 0
            if need.endswith("?")
            else state.get("ok") or state.get("repeatable") is not None
        ):
            return False
    return True


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--kit", type=Path, required=True)
    ap.add_argument("--tree", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--vllm", default="0.26.0")
    ap.add_argument("--second", default="0.22.1")
    ap.add_argument("--cpu", type=Path, help="registration (JSON) of a CPU engine: rehearse with it")
    ap.add_argument("--cpu-second", type=Path, help="that of another version")
    ap.add_argument(
        "--keep", action="store_true", help="of what --only needs, run what the last run into OUT did not"
    )
    ap.add_argument("--only", default="", help="stages, and what they need")
    ap.add_argument("--skip", default="")
    ap.add_argument("--deadline", type=float, default=540)
    ap.add_argument("--jobs", type=int, default=4)
    ap.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="of the prompts, in tokens")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    a.kit.mkdir(parents=True, exist_ok=True)
    box = Box(a)
    lay_out(box, a.keep)
    make_small(box)
    only, skip = set(filter(None, a.only.split(","))), set(filter(None, a.skip.split(",")))
    done, asked = {}, set(only)
    if a.keep and (box.out / "results.json").exists():
        last = json.loads((box.out / "results.json").read_text())["stages"]
        done = {name: found for name, found in last.items() if name not in asked}
    if only:
        for name in [n for n in reversed(STAGES) if n in only]:
            only |= {n.rstrip("?") for n in STAGES[name][1]}
        for name in [n for n in reversed(STAGES) if n in only]:
            only |= {n.rstrip("?") for n in STAGES[name][1]}
    if box.cpu:
        # Triton's attention, and vLLM's batch-invariant mode, whose operators are Triton's: a CPU build has neither.
        skip |= {"H", "B7", "I1", "I2"} | ({"V"} if not box.cpu_second else set())
    elif not (box.kit / "site" / f"v-{box.second}").is_dir():
        skip |= {"V", "I2"}
    usable = {name for name, found in done.items() if found.get("ok")}
    todo = [n for n in STAGES if (not only or n in only) and n not in skip | usable]
    for name in todo:
        done.pop(name, None)
    lock = threading.Lock()

    def save():
        text = json.dumps(
            {"seconds": round(time.monotonic() - box.started, 1), "stages": done}, indent=1, default=str
        )
        (box.out / "results.json").write_text(text)

    def work(name):
        function, _, limit, _ = STAGES[name]
        began = time.monotonic()
        try:
            found = function(box)
        except Failed as error:
            found = {"ok": False, "failed": str(error)}
        except Exception:
            found = {"ok": False, "failed": traceback.format_exc()[-1500:]}
        found = {**found, "stage_s": round(time.monotonic() - began, 1)}
        with lock:
            done[name] = found
            save()
            print(
                f"[{time.monotonic() - box.started:5.0f} s] {name}: {'ok' if found['ok'] else 'NOT OK'}  {brief(found)}",
                flush=True,
            )

    running = {}
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        while todo or running:
            for name in [n for n in running if running[n].done()]:
                del running[name]
            for name in list(todo):
                state = ready(name, done)
                alone = STAGES[name][3]
                if state is False or box.left() < 15:
                    todo.remove(name)
                    done[name] = {
                        "ok": False,
                        "failed": "skipped: what it needs failed" if state is False else "no time left",
                    }
                    save()
                elif (
                    state
                    and len(running) < a.jobs
                    and not (alone and running)
                    and not any(STAGES[r][3] for r in running)
                ):
                    todo.remove(name)
                    running[name] = pool.submit(work, name)
                elif alone:
                    break  # order matters: what must run alone is not overtaken
            time.sleep(0.1)
            if not running and todo and not any(ready(n, done) for n in todo):
                for name in todo:
                    done[name] = {"ok": False, "failed": "skipped: what it needs did not run"}
                break
    save()
    with tarfile.open(box.out / "logs.tar.gz", "w:gz") as tar:
        tar.add(box.logs, "logs", filter=lambda t: t if t.size < 4 << 20 else None)
    shutil.rmtree(box.logs)
    print("\nstage  ok   seconds  what")
    for name, found in done.items():
        print(f"{name:5}  {'yes' if found['ok'] else 'NO ':3}  {found.get('stage_s', 0):7}  {brief(found)}")


def brief(found):
    keys = (
        "failed",
        "verdict",
        "cause",
        "first",
        "classes",
        "observer",
        "mib",
        "ratio_1",
        "ratio_8",
        "ratio_64",
        "same_answers",
        "same_8",
        "traces",
        "ratio",
        "generate_s",
        "start_s",
        "import_s",
        "kernels",
        "triton",
        "rows_1",
        "rows_64",
        "cudagraph_mode",
        "tokens_as_eager",
        "said",
        "gpu",
    )
    return "  ".join(f"{k}={str(found[k])[:260]}" for k in keys if found.get(k) not in (None, "", {}))


if __name__ == "__main__":
    main()
