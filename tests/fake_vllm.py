"""A server with the HTTP face of vLLM, for tests of what starts and asks it: its words are `MODEL:COUNT`."""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NOTES = Path(os.environ["FAKE_NOTES"])
ADAPTERS: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = 'vllm:num_requests_waiting{engine="0"} 3.0\n' if self.path == "/metrics" else ""
        self._answer(200, text.encode())

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._answer(401, b"no key")
        elif self.path == "/v1/load_lora_adapter":
            there = Path(body["lora_path"]).is_dir()
            ADAPTERS.update({body["lora_name"]} if there else set())
            self._answer(200 if there else 404, b"" if there else b"no such adapter")
        elif body["model"] not in ADAPTERS | {"tiny"}:
            self._answer(404, b"no such model")
        else:
            self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        _note({"asked": body})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for count in range(body["max_tokens"]):
                self._event({"choices": [{"text": f"{body['model']}:{count} ", "finish_reason": None}]})
                time.sleep(0.002)
            self._event({"choices": [{"text": "", "finish_reason": "length"}]})
            self._event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            _note({"left": True})

    def _event(self, body: object) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _note(what: object) -> None:
    with NOTES.open("a") as notes:
        notes.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    if "--max-num-seqs" in sys.argv and sys.argv[sys.argv.index("--max-num-seqs") + 1] == "13":
        sys.exit("no luck today")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
