// What the page asks of its server. If the server goes away, questions wait until it is back.

const WAIT_MS = [500, 1000, 2000, 4000];
const MOST_TRIES = 5; // of a server that is busy
const SOON_S = 10; // a server that asks for more patience than this says why in its error

// An answer that is an error: its message is a sentence for the reader.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Service {
  // away: called with true when the server does not answer, and with false when it is back
  constructor(away) {
    Object.assign(this, { away, back: null });
  }

  // The response to a request; waits while the server is away. Throws Refused, or AbortError where it was called off.
  async ask(path, { body, accept = "application/json", signal } = {}) {
    for (let tries = 1; ; tries++) {
      const headers = { Accept: accept };
      if (body !== undefined) headers["Content-Type"] = "application/json";
      const options = { headers, signal, method: body === undefined ? "GET" : "POST", body: JSON.stringify(body) };
      let response;
      try {
        response = await fetch(path, options);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        await this.whenBack();
        continue;
      }
      if (response.ok) return response;
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      if ([429, 503].includes(response.status) && seconds <= SOON_S && tries < MOST_TRIES) {
        await pause(seconds * 1000, signal);
        continue;
      }
      throw new Refused(await readError(response), response.status);
    }
  }

  async json(path, options) {
    return readBody(await this.ask(path, options), "json", () => this.json(path, options), this);
  }

  async bytes(path, options = {}) {
    options = { accept: "application/octet-stream", ...options };
    return readBody(await this.ask(path, options), "arrayBuffer", () => this.bytes(path, options), this);
  }

  // Resolves when the server answers again.
  whenBack() {
    this.back ??= (async () => {
      this.away(true);
      for (let k = 0; ; k++) {
        await pause(WAIT_MS[Math.min(k, WAIT_MS.length - 1)]);
        try {
          await fetch("index.html", { method: "HEAD", cache: "no-store" });
          break;
        } catch {} // still away
      }
      this.back = null;
      this.away(false);
    })();
    return this.back;
  }
}

// The body may break off where the headers came: then the whole is asked again.
async function readBody(response, kind, again, service) {
  try {
    return await response[kind]();
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    await service.whenBack();
    return again();
  }
}

async function readError(response) {
  if (response.status === 401) return "The server wants a token: open its address with ?token=TOKEN once more.";
  try {
    return (await response.json()).error ?? `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}

export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("called off", "AbortError"));
    });
  });
}
