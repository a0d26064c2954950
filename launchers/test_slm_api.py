"""Try an SLM API: info, load, generate, stream, unload. python test_slm_api.py [--prompt TEXT] [--url URL]."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse

Body = dict[str, object]


class Failed(Exception):
    pass


class Api:
    def __init__(self, url: str, key: str | None) -> None:
        self.url, self.headers = url.rstrip("/"), {"x-api-key": key} if key else {}

    def open(self, path: str, body: Body | None = None, method: str = "POST") -> HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        headers = self.headers | ({} if body is None else {"Content-Type": "application/json"})
        request = urllib.request.Request(f"{self.url}/slm/{path}", content, headers, method=method)
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            raise Failed(f"HTTP {error.code}: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            sys.exit(f"{self.url} does not answer: {error}; start it with python start_slm_api.py")
        return answer

    def ask(self, path: str, body: Body | None = None, method: str = "POST") -> Body:
        with self.open(path, body, method) as answer:
            found: Body = json.load(answer)
        return found


def info(api: Api) -> str:
    found = api.ask("info", method="GET")
    return f"{found['base_model']} with {found['lora_path']} on {found['device']}"


def load(api: Api) -> str:
    return str(api.ask("load")["message"])


def unload(api: Api) -> str:
    return str(api.ask("unload")["message"])


def generate(api: Api, prompt: str) -> str:
    return str(api.ask("generate", {"prompt": prompt, "max_new_tokens": 60, "temperature": 0.7})["response"])


def stream(api: Api, prompt: str) -> str:
    text: str = ""
    with api.open("stream", {"prompt": prompt, "max_new_tokens": 60, "temperature": 0.7}) as answer:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise Failed(event["error"])
            text += str(event.get("text", ""))
            if event.get("status") == "Response complete!":
                return text
    raise Failed("the stream ended before its answer was complete")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="Explain what machine learning is")
    parser.add_argument("--url", default="http://localhost:5000")
    parser.add_argument("--api-key", help="where the server asks for one")
    asked = parser.parse_args()
    api = Api(asked.url, asked.api_key)
    steps: dict[str, Callable[[], str]] = {
        "info": lambda: info(api),
        "load": lambda: load(api),
        "generate": lambda: generate(api, asked.prompt),
        "stream": lambda: stream(api, asked.prompt),
        "unload": lambda: unload(api),
    }
    failed = 0
    for name, step in steps.items():
        try:
            print(f"ok      {name:<9} {step()}")
        except Failed as error:
            failed += 1
            print(f"failed  {name:<9} {error}")
    print(f"{len(steps) - failed} of {len(steps)} ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
