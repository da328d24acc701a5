// A mission of this session again: its events on the page's own panels, at their times.

import { byId, clock } from "./dom.js";

const TICK_MS = 40;

export class Replay {
  /** `show(event)` shows one event, `clear()` empties the panels, `onEnd()` goes back to now. */
  constructor(show, clear, onEnd) {
    Object.assign(this, { show, clear, onEnd });
    this.events = null;
    byId("replay-play").onclick = () => this.pause(this.isPlaying);
    byId("replay-end").onclick = () => this.end();
    byId("replay-position").oninput = (event) => this.seek((this.length * event.target.value) / 1000);
  }

  get isOn() {
    return this.events !== null;
  }

  get length() {
    return this.events.length ? this.events[this.events.length - 1].t - this.events[0].t : 0;
  }

  begin(name, events) {
    this.events = events;
    byId("replay-name").textContent = `Replay of ${name}`;
    byId("replay-bar").hidden = false;
    this.clear();
    this.at = 0;
    this.next = 0;
    this.pause(false);
    byId("replay-play").focus();
  }

  pause(isPaused) {
    clearInterval(this.timer);
    this.isPlaying = !isPaused;
    byId("replay-play").textContent = isPaused ? "Play" : "Pause";
    if (isPaused) return;
    if (this.next >= this.events.length) this.seek(0);
    let last = performance.now();
    this.timer = setInterval(() => {
      const now = performance.now();
      this.at += ((now - last) / 1000) * Number(byId("replay-speed").value);
      last = now;
      this.advance();
      if (this.next >= this.events.length) this.pause(true);
    }, TICK_MS);
  }

  seek(at) {
    if (at < this.at) {
      this.clear();
      this.next = 0;
    }
    this.at = at;
    this.advance();
  }

  advance() {
    const begin = this.events.length ? this.events[0].t : 0;
    while (this.next < this.events.length && this.events[this.next].t - begin <= this.at) {
      this.show(this.events[this.next]);
      this.next += 1;
    }
    const shown = Math.min(this.at, this.length);
    byId("replay-position").value = this.length ? Math.round((1000 * shown) / this.length) : 1000;
    byId("replay-time").textContent = `${clock(shown)} of ${clock(this.length)}`;
  }

  end() {
    clearInterval(this.timer);
    this.events = null;
    byId("replay-bar").hidden = true;
    this.onEnd();
  }
}
