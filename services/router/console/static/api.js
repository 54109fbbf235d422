// api.js calls the router. Errors are Error objects whose message is for people.

// check returns an answer that is fine, and throws what the router says otherwise. The APIs write {"error": ...} with
// an object or a text.
async function check(response) {
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    const body = JSON.parse(text);
    message = body.error?.message || body.error;
    if (body.error?.field && !message.includes(body.error.field)) message = `${body.error.field}: ${message}`;
  } catch {
    message = text.trim();
  }
  if (response.status === 401) message = "This needs a valid API key: reload the page and sign in.";
  const error = new Error(message || `the router answers ${response.status}`);
  error.status = response.status;
  throw error;
}

async function send(method, path, body, signal) {
  const options = { method, signal };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The router cannot be reached.");
  }
  return check(response);
}

export const get = async (path, signal) => (await send("GET", path, undefined, signal)).json();
export const bytes = async (path, signal) => (await send("GET", path, undefined, signal)).arrayBuffer();
export const post = async (path, body = {}, signal) => (await send("POST", path, body, signal)).json();
export const remove = async (path) => (await send("DELETE", path)).json();

// upload posts bytes as they are.
export async function upload(path, blob) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: blob });
  return (await check(response)).json();
}

// stream posts a request and yields the data of the server-sent events of the answer as they come.
export async function* stream(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) {
      const data = rest.slice(0, at).split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6));
      if (data.length) yield data.join("\n");
    }
  }
}

// follow calls back with each event of a stream until stop is called, and connects again when it is lost. state gets
// "live" or "lost" and, if the router has refused, why.
export function follow(path, event, state = () => {}) {
  const control = new AbortController();
  let wait = 500;
  (async () => {
    while (!control.signal.aborted) {
      let reason = "";
      try {
        for await (const data of stream("GET", path, undefined, control.signal)) {
          wait = 500;
          state("live", "");
          event(JSON.parse(data));
        }
      } catch (error) {
        if (control.signal.aborted) return;
        reason = error.message;
        if (error.status === 403 || error.status === 412 || error.status === 400) { // another try changes nothing
          state("refused", reason);
          return;
        }
      }
      state("lost", reason);
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(2 * wait, 10000);
    }
  })();
  return () => control.abort();
}
