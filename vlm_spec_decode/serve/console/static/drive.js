// The hold-to-drive pad: buttons and keys. What is held is sent 20 times a second; silence stops the robot.

import { byId } from "./dom.js";

const PERIOD_MS = 50;
const KEYS = {
  ArrowUp: [1, 0, 0], KeyW: [1, 0, 0], ArrowDown: [-1, 0, 0], KeyS: [-1, 0, 0],
  ArrowLeft: [0, 0, 1], KeyA: [0, 0, 1], ArrowRight: [0, 0, -1], KeyD: [0, 0, -1],
  KeyQ: [0, 1, 0], KeyE: [0, -1, 0],
};

export const isTextField = (element) =>
  element && element.matches("input:not([type]), input[type=text], input[type=password], textarea");

export class DrivePad {
  /** `send` sends a message and says whether it could. */
  constructor(send) {
    this.send = send;
    this.held = new Map();
    this.timer = 0;
    this.speed = byId("speed");
    this.speed.oninput = () => { byId("speed-shown").textContent = `${this.speed.value} %`; };
    for (const button of byId("pad").querySelectorAll("button")) this.watch(button);
    addEventListener("keydown", (event) => this.onKey(event, true));
    addEventListener("keyup", (event) => this.onKey(event, false));
    addEventListener("blur", () => this.end());
    addEventListener("contextmenu", () => this.end(), true);  // its menu takes the keyup
    document.addEventListener("focusin", (event) => isTextField(event.target) && this.end());
    document.addEventListener("visibilitychange", () => document.hidden && this.end());
    addEventListener("pagehide", () => this.end());
  }

  watch(button) {
    const direction = button.dataset.drive.split(",").map(Number);
    const release = () => this.release(button);
    button.addEventListener("pointerdown", (event) => {
      if (button.disabled || event.button) return;
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      this.hold(button, direction);
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) {
      button.addEventListener(name, release);
    }
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    // Enter on a focused button drives as long as it is held.
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) this.hold(button, direction);
    });
    button.addEventListener("keyup", (event) => event.key === "Enter" && release());
  }

  onKey(event, isDown) {
    // Some systems send no keyup for keys that are let go while one of these is down.
    if (event.metaKey || event.ctrlKey || event.altKey || event.key === "Meta") {
      this.end();
      return;
    }
    const direction = KEYS[event.code];
    if (!direction) return;
    if (!isDown) {
      this.release(event.code);
      return;
    }
    const isOn = byId("key-drive").checked && !byId("key-drive").disabled;
    if (!isOn || isTextField(event.target) || event.target.matches("select, input[type=range]")) return;
    event.preventDefault();
    if (!event.repeat) this.hold(event.code, direction);
  }

  hold(who, direction) {
    this.held.set(who, direction);
    if (who.classList) who.classList.add("held");
    if (!this.timer) this.timer = setInterval(() => this.beat(), PERIOD_MS);
    this.beat();
  }

  release(who) {
    if (!this.held.delete(who)) return;
    if (who.classList) who.classList.remove("held");
    if (this.held.size) this.beat();
    else this.end();
  }

  /** Let everything go. */
  end() {
    for (const who of this.held.keys()) if (who.classList) who.classList.remove("held");
    this.held.clear();
    if (!this.timer) return;
    clearInterval(this.timer);
    this.timer = 0;
    this.send({ type: "drive", end: true });
  }

  beat() {
    const share = Number(this.speed.value) / 100;
    const sum = [0, 0, 0];
    for (const direction of this.held.values()) direction.forEach((value, index) => { sum[index] += value; });
    const [x, y, turn] = sum.map((value) => Math.max(-1, Math.min(1, value)) * share);
    this.send({ type: "drive", x, y, turn });
  }
}
