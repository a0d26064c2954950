// The SLM API's chat page: every message is one POST /slm/stream, read as it comes.

const at = (id) => document.getElementById(id);
let running = null; // the AbortController of the answer that is being written

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer; is it still running?");
  }
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    return (await answer.json()).error ?? `HTTP ${answer.status}`;
  } catch {
    return `HTTP ${answer.status}`;
  }
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
    }
  }
}

function add(turn, kind, text) {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  turn.append(element);
  return element;
}

function keepInView(change) {
  const chat = at("chat");
  const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
  change();
  if (atEnd) chat.scrollTop = chat.scrollHeight;
}

function show(state, text) {
  at("state").className = `chip ${state}`;
  at("state").textContent = text;
}

async function look() {
  try {
    const info = await (await call("/slm/info")).json();
    at("model").textContent = info.lora_path ? `${info.lora_path} on ${info.base_model}` : info.base_model;
    show(info.model_loaded ? "loaded" : "", info.model_loaded ? `loaded on ${info.device}` : "not loaded");
    at("memory").textContent = info.model_loaded ? "Unload" : "Load";
    at("memory").hidden = false;
  } catch (error) {
    show("failed", "no answer");
    at("model").textContent = error.message;
  }
}

async function turnMemory() {
  const loading = at("memory").textContent === "Load";
  at("memory").disabled = true;
  show("busy", loading ? "loading …" : "unloading …");
  try {
    await call(loading ? "/slm/load" : "/slm/unload", { method: "POST" });
  } catch (error) {
    add(newTurn(), "said error", error.message);
  } finally {
    at("memory").disabled = false;
    await look();
  }
}

function newTurn() {
  at("empty").hidden = true;
  const turn = document.createElement("section");
  turn.className = "turn";
  at("chat").append(turn);
  return turn;
}

function setBusy(busy) {
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  at("memory").disabled = busy;
}

async function ask(prompt) {
  const turn = newTurn();
  add(turn, "said you", prompt);
  const said = add(turn, "said model writing", "");
  const note = add(turn, "note", "");
  at("chat").scrollTop = at("chat").scrollHeight;
  running = new AbortController();
  setBusy(true);
  show("busy", "thinking …");
  try {
    await receive(prompt, said, note);
  } catch (error) {
    if (error.name === "AbortError") note.textContent = "stopped";
    else keepInView(() => { note.remove(); add(turn, "said error", error.message); });
  } finally {
    said.classList.remove("writing");
    said.hidden = said.textContent === "";
    running = null;
    setBusy(false);
    await look();
    at("prompt").focus();
  }
}

async function receive(prompt, said, note) {
  const body = {
    prompt,
    max_new_tokens: at("max-new-tokens").valueAsNumber || 150,
    temperature: at("temperature").valueAsNumber,
  };
  const answer = await call("/slm/stream", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: running.signal,
  });
  const begun = performance.now();
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error);
    if (event.text) keepInView(() => { said.textContent += event.text; });
    if (event.status) {
      show("busy", event.status.replace(/\.{3}$/, " …"));
      note.textContent = event.status;
    }
    if (event.device_used) {
      const seconds = ((performance.now() - begun) / 1000).toFixed(1);
      note.textContent = said.textContent ? `${seconds} s on ${event.device_used}` : "the model ended at once";
      return;
    }
  }
  throw new Error("The answer broke off; the server may have stopped.");
}

function fit() {
  const prompt = at("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at("prompt").value.trim();
  if (!prompt || running) return;
  at("prompt").value = "";
  fit();
  ask(prompt);
});
at("prompt").addEventListener("input", fit);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
at("stop").addEventListener("click", () => running?.abort());
at("memory").addEventListener("click", turnMemory);
at("temperature").addEventListener("input", () => { at("shown-temperature").value = at("temperature").value; });
at("samples").addEventListener("click", (event) => {
  if (event.target.matches(".sample")) ask(event.target.textContent);
});
look();
