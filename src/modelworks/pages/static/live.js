// A job's events as they happen, each once, through reloads of the server and breaks of the network.
const TYPES = ["state", "progress", "metric", "log", "artifact"];
const FINAL = new Set(["succeeded", "failed", "cancelled"]);
const RETRY_MS = 1000;

/** Calls onEvent(event) for every event and onConnection("live" | "lost" | "ended"); returns how to stop. */
export function follow(jobId, onEvent, onConnection) {
  let source = null, timer = 0, seen = 0, stopped = false, final = false;

  const stop = (word) => {
    stopped = true;
    clearTimeout(timer);
    source?.close();
    if (word) onConnection(word);
  };

  const take = (message) => {
    const event = JSON.parse(message.data);
    if (stopped || event.seq <= seen) return;
    seen = event.seq;
    onEvent(event);
    // A job that was tried again has more to tell behind its first end: the server closes the stream at the last one.
    if (event.type === "state") final = FINAL.has(event.body.state);
  };

  const connect = () => {
    source = new EventSource(`/modelworks/jobs/${encodeURIComponent(jobId)}/events?after=${seen}`);
    source.addEventListener("open", () => onConnection("live"));
    for (const type of TYPES) source.addEventListener(type, take);
    // Also when the server says goodbye: the browser's own way back waits longer, and gives up on an answer like 503.
    source.addEventListener("error", () => {
      source.close();
      if (stopped) return;
      if (final) return stop("ended");
      onConnection("lost");
      timer = setTimeout(connect, RETRY_MS);
    });
  };

  connect();
  return () => stop();
}
