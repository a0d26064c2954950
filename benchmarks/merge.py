"""How fast and how small merging is, beside mergekit, merging-eval and the time to copy the bytes.

`make bench-merge` runs it. The peers live in a virtual environment of their own, which is made at the first run. All
tools get the same inputs in the same run, one after the other with a warm page cache; figures are medians. The copy
limit is what reading all inputs and writing the output takes, without any arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent
BIN = Path(sys.executable).parent
PEERS = ("torch==2.13.0", "mergekit==0.1.5", "merging-eval==0.1.4", "python-dotenv")
READ_AT_ONCE = 4 << 20
EXPERTS = ("e1", "e2", "e3")
# A peer that takes longer than this is run three times instead of five.
SLOW_SECONDS = 60.0
# Qwen2 of 1.5 billion parameters.
BIG = {"hidden": 1536, "layers": 28, "intermediate": 8960, "key_values": 256, "vocabulary": 151_936}

MERGING_EVAL = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from merge import MergingMethod
method, out, base, *experts = sys.argv[1:]
options = {"task_arithmetic": {"scaling_coefficient": 0.3}, "average_merging": {},
           "ties_merging": {"param_value_mask_rate": 0.8, "scaling_coefficient": 0.3},
           "ties_merging_dare": {"param_value_mask_rate": 0.8, "scaling_coefficient": 0.3},
           "mask_merging": {"weight_mask_rates": [0.5] * len(experts)}}[method]
load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
merged = MergingMethod(method).get_merged_model(
    merged_model=load(base), models_to_merge=[load(path) for path in experts], exclude_param_names_regex=[], **options)
merged.to(torch.bfloat16).save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""

# The merge alone, in a process that has everything imported: what a running service needs for it.
ENGINE = """
import json, shutil, sys, time
from pathlib import Path
from modelworks.app.folder_merging import merge_folders, plan_folders
from modelworks.core.config import load_settings
body, out, times, settings = json.loads(sys.argv[1]), Path(sys.argv[2]), [], load_settings().settings
for _ in range(int(sys.argv[3]) + 1):
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    merge_folders(plan_folders(body, settings), out, lambda _: None, lambda: False, workers=0, overwrite=False)
    times.append(time.perf_counter() - start)
print(json.dumps(times[1:]))
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    private_mb: float


@dataclass(frozen=True)
class Row:
    size: str
    method: str
    tool: str
    seconds: float
    cpu_seconds: float
    private_mb: float
    runs: int
    limit_seconds: float
    engine_seconds: float | None = None


def run(command: Sequence[str]) -> Run:
    """Run a command to its end; its memory is the most that it holds in anonymous pages."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = [0.0]
    threading.Thread(target=_watch, args=(process.pid, peak), daemon=True).start()
    _, said = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{command[:3]} failed:\n{said[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, peak[0])


def _watch(pid: int, peak: list[float]) -> None:
    while True:
        try:
            peak[0] = max(peak[0], _anonymous_mb(pid))
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)


def _anonymous_mb(pid: int) -> float:
    """Of a process, and what its forks hold of their own."""
    forks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _kilobytes(pid, "status", "RssAnon") / 1024 + sum(
        _kilobytes(fork, "smaps_rollup", "Private_Dirty") / 1024 for fork in forks
    )


def _kilobytes(pid: int | str, file: str, wanted: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(wanted)), 0)


def copy_limit(inputs: Sequence[Path], out: Path, repeats: int) -> float:
    """Seconds to read all weights and to write as many bytes as one model has; the disk is not waited for."""
    times = []
    buffer = memoryview(bytearray(READ_AT_ONCE))
    size = sum(file.stat().st_size for file in inputs[0].glob("*.safetensors"))
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for folder in inputs:
            for file in folder.glob("*.safetensors"):
                with file.open("rb", buffering=0) as source:
                    while source.readinto(buffer):
                        pass
        with out.open("wb", buffering=0) as target:
            for _ in range(size // READ_AT_ONCE + 1):
                target.write(buffer)
        times.append(time.perf_counter() - start)
        out.unlink()
    return statistics.median(times[1:])  # the first warms the cache


def make_small(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from modelworks.weights.convert import convert_gguf
    from modelworks.weights.pull import find_packaged

    base = folder / "base"
    base.mkdir(parents=True)
    convert_gguf(find_packaged("smollm2-135m"), base)
    weights = load_file(base / "model.safetensors")
    for number, name in enumerate(EXPERTS, 1):
        shutil.copytree(base, folder / name)
        dice = torch.Generator().manual_seed(number)
        changed = {
            key: value if value.ndim < 2
            else (value + 0.05 * value.float().std() * torch.randn(value.shape, generator=dice)).bfloat16()
            for key, value in weights.items()
        }  # fmt: skip
        save_file(changed, folder / name / "model.safetensors", metadata={"format": "pt"})


def make_big(folder: Path) -> None:
    import torch

    from modelworks.weights.writer import CheckpointWriter, Planned

    width, middle, narrow = BIG["hidden"], BIG["intermediate"], BIG["key_values"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (BIG["vocabulary"], width)}
    for layer in range(BIG["layers"]):
        for part, shape in {
            "self_attn.q_proj.weight": (width, width), "self_attn.q_proj.bias": (width,),
            "self_attn.k_proj.weight": (narrow, width), "self_attn.k_proj.bias": (narrow,),
            "self_attn.v_proj.weight": (narrow, width), "self_attn.v_proj.bias": (narrow,),
            "self_attn.o_proj.weight": (width, width), "mlp.gate_proj.weight": (middle, width),
            "mlp.up_proj.weight": (middle, width), "mlp.down_proj.weight": (width, middle),
            "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{part}"] = shape
    shapes["model.norm.weight"] = (width,)
    plan = [Planned(name, "BF16", shape) for name, shape in shapes.items()]
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": width, "num_attention_heads": 12,
        "num_key_value_heads": 2, "num_hidden_layers": BIG["layers"], "intermediate_size": middle, "hidden_act": "silu",
        "vocab_size": BIG["vocabulary"], "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    for number, name in enumerate(("base", *EXPERTS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        with CheckpointWriter(folder / name, plan, max_shard_bytes=1_000_000_000) as writer:
            for place, planned in enumerate(plan):
                values = torch.randn(planned.shape, generator=torch.Generator().manual_seed(place)) * 0.02
                if number:
                    dice = torch.Generator().manual_seed(10_000 * number + place)
                    values += torch.randn(planned.shape, generator=dice) * 0.002
                writer.write(planned.name, values.bfloat16())


def recipes(models: Path) -> dict[str, dict[str, object]]:
    """What both mergekit and Modelworks are given, as the same file."""
    paths = [str(models / name) for name in EXPERTS]
    base = str(models / "base")

    def recipe(
        method: str, own: dict[str, float], over_all: dict[str, object], has_base: bool = True
    ) -> dict[str, object]:
        body: dict[str, object] = {
            "merge_method": method, "dtype": "bfloat16", "parameters": over_all,
            "models": [{"model": path, "parameters": own} for path in paths],
        }  # fmt: skip
        return body | ({"base_model": base} if has_base else {})

    return {
        "linear": recipe("linear", {"weight": 1.0}, {}, has_base=False),
        "task_arithmetic": recipe("task_arithmetic", {"weight": 0.3}, {}),
        "ties": recipe("ties", {"weight": 1.0, "density": 0.2}, {"lambda": 1.0}),
        "dare_ties": recipe("dare_ties", {"weight": 1.0, "density": 0.5}, {}),
    }


class Bench:
    def __init__(self, work: Path, repeats: int) -> None:
        self.work, self.repeats = work, repeats
        self.rows: list[Row] = []
        self.peers = work / "peers"

    def prepare(self) -> None:
        if not (self.peers / "bin" / "mergekit-yaml").exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.peers)], check=True)
            pip = [str(self.peers / "bin" / "pip"), "install", "-q"]
            subprocess.run([*pip, PEERS[0]], check=True)
            subprocess.run([*pip, *PEERS], check=True)
        for name, make in (("small", make_small), ("big", make_big)):
            if not (self.work / name).exists():
                made = self.work / f"{name}.partial"
                shutil.rmtree(made, ignore_errors=True)
                make(made)
                made.rename(self.work / name)

    def compare(self, size: str, method: str, with_mergekit: bool = True) -> None:
        models, out = self.work / size, self.work / "out"
        body = recipes(models)[method]
        file = self.work / f"{method}.yml"
        file.write_text(yaml.safe_dump(body, sort_keys=False))
        used = [models / name for name in ("base", *EXPERTS) if name != "base" or "base_model" in body]
        limit = copy_limit(used, self.work / "copied", self.repeats)
        engine = subprocess.run(
            [sys.executable, "-c", ENGINE, json.dumps(body), str(out), str(self.repeats)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        alone = statistics.median(json.loads(engine.stdout.splitlines()[-1]))
        tools: dict[str, list[str]] = {
            "modelworks": [str(BIN / "modelworks"), "merge", str(file), "--out", str(out), "--overwrite"]
        }
        if with_mergekit:
            tools["mergekit"] = [str(self.peers / "bin" / "mergekit-yaml"), str(file), str(out)]
        for tool, runs in self._alternate(tools, out).items():
            self._add(size, method, tool, runs, limit, alone if tool == "modelworks" else None)

    def compare_with_merging_eval(self, method: str) -> None:
        models, out = self.work / "small", self.work / "out"
        base, *experts = (str(models / name) for name in ("base", *EXPERTS))
        ours = {"task_arithmetic": "task_arithmetic_bf16"}.get(method, method)
        params = {
            "task_arithmetic": ["scaling_coefficient=0.3"],
            "ties_merging": ["scaling_coefficient=0.3"], "ties_merging_dare": ["scaling_coefficient=0.3"],
        }.get(method, [])  # fmt: skip
        tools = {
            "modelworks": [
                str(BIN / "modelworks"), "merge", "--method", ours, "--base", base, "--models", *experts,
                *(part for param in params for part in ("--param", param)), "--out", str(out), "--overwrite",
            ],
            "merging-eval": [
                str(self.peers / "bin" / "python"), "-W", "ignore", "-c", MERGING_EVAL, method, str(out), base, *experts
            ],
        }  # fmt: skip
        limit = copy_limit([models / name for name in ("base", *EXPERTS)], self.work / "copied", self.repeats)
        for tool, runs in self._alternate(tools, out).items():
            self._add("small", method, tool, runs, limit, None)

    def _alternate(self, tools: dict[str, list[str]], out: Path) -> dict[str, list[Run]]:
        """Run every tool in turn, so that what else the machine does meets all of them."""
        runs: dict[str, list[Run]] = {tool: [] for tool in tools}
        for number in range(self.repeats):
            for tool, command in tools.items():
                if number >= 3 and runs[tool][0].seconds > SLOW_SECONDS:
                    continue
                shutil.rmtree(out, ignore_errors=True)
                runs[tool].append(run(command))
        shutil.rmtree(out, ignore_errors=True)
        return runs

    def _add(self, size: str, method: str, tool: str, runs: list[Run], limit: float, engine: float | None) -> None:
        middle: Callable[[Callable[[Run], float]], float] = lambda of: statistics.median(map(of, runs))  # noqa: E731 - short and used three times below
        row = Row(
            size, method, tool, middle(lambda r: r.seconds), middle(lambda r: r.cpu_seconds),
            max(r.private_mb for r in runs), len(runs), limit, engine,
        )  # fmt: skip
        self.rows.append(row)
        print(json.dumps(asdict(row)), flush=True)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown; a peer's ratio is its seconds over ours for the same merge."""
    lines = [
        "| size | method | tool | seconds | CPU s | private MB | runs | limit | merge alone (limits) | ours = 1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = {(row.size, row.method): row.seconds for row in rows if row.tool == "modelworks"}
    for row in rows:
        alone = (
            ""
            if row.engine_seconds is None
            else f"{row.engine_seconds:.2f} ({row.engine_seconds / row.limit_seconds:.1f})"
        )
        ratio = "" if row.tool == "modelworks" else f"{row.seconds / ours[row.size, row.method]:.1f}"
        lines.append(
            f"| {row.size} | {row.method} | {row.tool} | {row.seconds:.2f} | {row.cpu_seconds:.1f} | "
            f"{row.private_mb:.0f} | {row.runs} | {row.limit_seconds:.2f} | {alone} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".work", help="models, peers and results; 20 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only", choices=("small", "big", "merging-eval"), nargs="*", default=["small", "big", "merging-eval"]
    )
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.work.resolve(), asked.repeats)
    bench.prepare()
    if "small" in asked.only:
        for method in ("linear", "task_arithmetic", "dare_ties", "ties"):
            bench.compare("small", method)
    if "merging-eval" in asked.only:
        for method in ("average_merging", "task_arithmetic", "ties_merging", "ties_merging_dare", "mask_merging"):
            bench.compare_with_merging_eval(method)
    if "big" in asked.only:
        bench.compare("big", "linear")
        bench.compare("big", "task_arithmetic")
        # mergekit sorts a billion and a half numbers three times: a quarter of an hour and more.
        bench.compare("big", "ties", with_mergekit=False)
    print(table(bench.rows))
    (asked.work / "merge.md").write_text(table(bench.rows) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # All tools keep the bytecode of their modules, as they do for their users.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
