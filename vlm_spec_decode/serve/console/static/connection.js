// The page's connection: token, WebSocket of events and commands, WebSocket of pictures, and the stop.

const PROTOCOL = "vsd.console.1";
const KEPT_AS = "vsd-token";
const STOP_PATIENCE_MS = 250;
const STOP_TRIES_MS = [1000, 2000, 3000]; // how long each request to stop may take
const STOP_PAUSE_MS = 300;
const FETCH_MS = 4000;
const PING_EVERY_MS = 1000;
const OPEN_MS = 4000;
const PONG_WITHIN_MS = 2000; // silence after a ping that loses the connection: a dead link closes nothing

/** Take the token from the link, keep it for this tab, and remove it from the address bar. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEPT_AS, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return keptToken();
}

export const keptToken = () => sessionStorage.getItem(KEPT_AS) || "";

export function keepToken(token) {
  sessionStorage.setItem(KEPT_AS, token);
}

/** What there is, and what the token allows: `{robots, may}`, or `{refused}`, or `{away}`. */
export async function ask(token) {
  try {
    const response = await request("/api/robots", token, FETCH_MS);
    if (response.status === 401) return { refused: true };
    return response.ok ? await response.json() : { away: true };
  } catch {
    return { away: true };
  }
}

function request(path, token, withinMs, options = {}) {
  const signal = AbortSignal.timeout(withinMs);
  return fetch(path, { ...options, signal, headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
}

/** A name for one press of a stop button, by which all its messages are known as one. */
const namePress = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");

/** Stop a robot, or all where none is named, by a request of its own; tried again while no reply comes. */
export async function stopByRequest(token, robot = "", press = namePress()) {
  const path = `/api/stop?press=${press}${robot && `&robot=${encodeURIComponent(robot)}`}`;
  let fault = null;
  for (const withinMs of STOP_TRIES_MS) {
    if (fault) await new Promise((resolve) => setTimeout(resolve, STOP_PAUSE_MS));
    let found;
    try {
      found = await (await request(path, token, withinMs, { method: "POST" })).json();
    } catch (error) {
      fault = error.name === "TimeoutError" ? new Error("no reply from the robot's computer") : error;
      continue;
    }
    if (!found.stopped) throw new Error(found.detail || found.error);
    return found.detail;
  }
  throw fault;
}

/** A token as a subprotocol may be: without the slash and the equals sign of base64, which no browser takes. */
function asSubprotocol(token) {
  const bytes = Array.from(new TextEncoder().encode(token), (byte) => String.fromCharCode(byte)).join("");
  return `token64.${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

export class Connection {
  /** `onEvents(list)` gets events, `onState(isOpen)` the state of the connection. */
  constructor(token, robot, onEvents, onState) {
    Object.assign(this, { token, robot, onEvents, onState });
    this.waiting = new Map();
    this.number = 0;
    this.isClosed = false;
    this.delay = 300;
    this.pinger = setInterval(() => this.ping(), PING_EVERY_MS);
    this.hurry = () => { this.ping(); };
    addEventListener("online", this.hurry);
    addEventListener("offline", this.hurry);
    this.open();
  }

  get isOpen() {
    return this.socket && this.socket.readyState === WebSocket.OPEN;
  }

  /** Ask whether the other side is still there; a socket that is open says nothing about that. */
  ping() {
    if (this.askedAt && performance.now() - this.askedAt > PONG_WITHIN_MS) this.lose();
    else if (!this.askedAt && this.send({ type: "ping" })) this.askedAt = performance.now();
  }

  /** Give the socket up now: closing a dead one waits for the other side for a minute. */
  lose() {
    const socket = this.socket;
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.onLost();
  }

  onLost() {
    for (const { reject } of this.waiting.values()) reject(new Error("the connection is lost"));
    this.waiting.clear();
    this.askedAt = 0;
    if (this.isClosed) return;
    this.onState(false);
    clearTimeout(this.reopening);
    this.reopening = setTimeout(() => this.isClosed || this.open(), this.delay);
    this.delay = Math.min(3000, this.delay * 2);
  }

  url(kind) {
    return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/${kind}/${encodeURIComponent(this.robot)}`;
  }

  openSocket(kind) {
    return new WebSocket(this.url(kind), [PROTOCOL, asSubprotocol(this.token)]);
  }

  open() {
    const socket = (this.socket = this.openSocket("events"));
    this.askedAt = performance.now() + OPEN_MS; // so much longer than a pong it may take to open
    socket.onopen = () => { this.delay = 300; };
    socket.onmessage = (message) => {
      this.askedAt = 0;
      this.take(JSON.parse(message.data));
    };
    socket.onclose = () => this.onLost();
  }

  take(events) {
    for (const event of events) {
      if (event.type === "welcome") this.onState(true);
      if (event.type === "done" || event.type === "refused") {
        const asked = this.waiting.get(event.id);
        this.waiting.delete(event.id);
        if (asked && event.type === "done") asked.resolve(event.detail);
        else if (asked) asked.reject(new Error(event.detail));
      }
    }
    this.onEvents(events);
  }

  send(message) {
    if (this.isOpen) this.socket.send(JSON.stringify(message));
    return this.isOpen;
  }

  /** Send a command; the promise is its outcome in words. */
  command(command, fields = {}) {
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      if (!this.send({ type: "command", id, command, ...fields })) {
        this.waiting.delete(id);
        reject(new Error("not connected"));
      }
    });
  }

  /** Stop the robot, or all: by the WebSocket, and by a request of its own where no reply comes at once. */
  async stop(isForAll = false) {
    const command = isForAll ? "stop_all" : "stop";
    const press = namePress();
    const bySocket = this.isOpen ? this.command(command, { press }) : Promise.reject(new Error("not connected"));
    const patience = new Promise((_, reject) => setTimeout(() => reject(new Error("no reply yet")), STOP_PATIENCE_MS));
    try {
      return await Promise.race([bySocket, patience]);
    } catch {
      // Whichever answers first: the request, or the socket after all.
      const byRequest = stopByRequest(this.token, isForAll ? "" : this.robot, press);
      return Promise.any([bySocket, byRequest]).catch(() => byRequest);
    }
  }

  /** The picture that an answer was about, as a blob; null if it is not kept. */
  async frame(mission, answer) {
    const path = `/api/frame/${encodeURIComponent(this.robot)}/${encodeURIComponent(mission)}/${answer}`;
    try {
      const response = await request(path, this.token, FETCH_MS);
      return response.ok ? await response.blob() : null;
    } catch {
      return null; // lost, or too slow
    }
  }

  close() {
    this.isClosed = true;
    clearInterval(this.pinger);
    clearTimeout(this.reopening);
    removeEventListener("online", this.hurry);
    removeEventListener("offline", this.hurry);
    this.socket.close();
  }
}
