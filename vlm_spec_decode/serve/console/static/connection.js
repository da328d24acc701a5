// The page's connection: token, WebSocket of events and commands, WebSocket of pictures, and the stop.

const PROTOCOL = "vsd.console.1";
const KEPT_AS = "vsd-token";
const STOP_PATIENCE_MS = 250;

/** Take the token from the link, keep it for this tab, and remove it from the address bar. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEPT_AS, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(KEPT_AS) || "";
}

export function keepToken(token) {
  sessionStorage.setItem(KEPT_AS, token);
}

/** What there is, and what the token allows: `{robots, may}`, or `{refused}`, or `{away}`. */
export async function ask(token) {
  try {
    const response = await fetch("/api/robots", { headers: { Authorization: `Bearer ${token}` } });
    if (response.status === 401) return { refused: true };
    return response.ok ? await response.json() : { away: true };
  } catch {
    return { away: true };
  }
}

export class Connection {
  /** `onEvents(list)` gets events, `onState(isOpen)` the state of the connection. */
  constructor(token, robot, onEvents, onState) {
    Object.assign(this, { token, robot, onEvents, onState });
    this.waiting = new Map();
    this.number = 0;
    this.isClosed = false;
    this.delay = 300;
    this.open();
  }

  get isOpen() {
    return this.socket && this.socket.readyState === WebSocket.OPEN;
  }

  url(kind) {
    return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/${kind}/${encodeURIComponent(this.robot)}`;
  }

  openSocket(kind) {
    return new WebSocket(this.url(kind), [PROTOCOL, `token.${this.token}`]);
  }

  open() {
    const socket = (this.socket = this.openSocket("events"));
    socket.onopen = () => { this.delay = 300; };
    socket.onmessage = (message) => this.take(JSON.parse(message.data));
    socket.onclose = () => {
      for (const { reject } of this.waiting.values()) reject(new Error("the connection is lost"));
      this.waiting.clear();
      if (this.isClosed) return;
      this.onState(false);
      setTimeout(() => this.isClosed || this.open(), this.delay);
      this.delay = Math.min(3000, this.delay * 2);
    };
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

  /** Stop the robot: by the WebSocket, and by a request of its own where no reply comes at once. */
  async stop() {
    const bySocket = this.isOpen ? this.command("stop") : Promise.reject(new Error("not connected"));
    const patience = new Promise((_, reject) => setTimeout(() => reject(new Error("no reply yet")), STOP_PATIENCE_MS));
    try {
      return await Promise.race([bySocket, patience]);
    } catch {
      bySocket.catch(() => {});
      const response = await fetch(`/api/stop?robot=${encodeURIComponent(this.robot)}`, {
        method: "POST",
        headers: { Authorization: `Bearer ${this.token}` },
      });
      const found = await response.json();
      if (!found.stopped) throw new Error(found.detail ? found.detail.join("; ") : found.error);
      return found.detail.join("; ");
    }
  }

  /** The picture that an answer was about, as a blob; null if it is not kept. */
  async frame(mission, answer) {
    const path = `/api/frame/${encodeURIComponent(this.robot)}/${encodeURIComponent(mission)}/${answer}`;
    const response = await fetch(path, { headers: { Authorization: `Bearer ${this.token}` } });
    return response.ok ? response.blob() : null;
  }

  close() {
    this.isClosed = true;
    this.socket.close();
  }
}
