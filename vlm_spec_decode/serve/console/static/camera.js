// The camera: pictures from a WebSocket, and over them the way that the plan leads.

import { byId } from "./dom.js";

const NEAR_M = 0.2;
const STEP_M = 0.1;

export class Camera {
  constructor() {
    this.canvas = byId("video");
    this.pen = this.canvas.getContext("2d");
    this.note = byId("video-note");
    this.path = [];
    this.body = null;
    this.facts = null;
    this.isVerified = true;
    this.isReplaying = false;
    this.shown = 0;
    this.timer = 0;
  }

  /** Show the pictures of a connection from now on. */
  follow(connection) {
    this.stop();
    this.connection = connection;
    const socket = (this.socket = connection.openSocket("video"));
    socket.binaryType = "blob";
    socket.onmessage = async (message) => {
      try {
        if (!this.isReplaying) await this.show(message.data);
      } finally {
        if (socket.readyState === WebSocket.OPEN) socket.send("ok");
      }
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.say("No picture: not connected");
      this.timer = setTimeout(() => this.follow(connection), 1500);
    };
  }

  /** Show no picture as if it were of now: the connection is lost, though the socket may not know it. */
  lose() {
    this.stop();
    if (!this.isReplaying) this.say("Not connected: an old picture");
  }

  stop() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
    this.canvas.setAttribute("aria-label", `Camera: ${text || "live picture"}`);
  }

  async show(blob) {
    const picture = await createImageBitmap(blob);
    if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
      this.canvas.width = picture.width;
      this.canvas.height = picture.height;
    }
    this.pen.drawImage(picture, 0, 0);
    picture.close();
    this.drawPath();
    this.shown += 1;
    this.canvas.dataset.shown = this.shown;
    if (!this.note.hidden && !this.isReplaying) this.say("");
  }

  /** Blank the picture, as before a replay. */
  clear(text) {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.say(text);
  }

  /** A point of the floor, in odometry, in pixels; null behind the camera. */
  project([x, y]) {
    const { hfov_deg, pitch_deg, forward_m, height_m } = this.facts.camera;
    const [dx, dy] = [x - this.body.x, y - this.body.y];
    const [cos, sin] = [Math.cos(this.body.yaw), Math.sin(this.body.yaw)];
    const ahead = cos * dx + sin * dy - forward_m;
    const left = cos * dy - sin * dx;
    const pitch = (pitch_deg * Math.PI) / 180;
    const depth = ahead * Math.cos(pitch) + height_m * Math.sin(pitch);
    if (depth < NEAR_M) return null;
    const up = ahead * Math.sin(pitch) - height_m * Math.cos(pitch);
    const focal = this.canvas.width / 2 / Math.tan((hfov_deg * Math.PI) / 360);
    return [this.canvas.width / 2 - (focal * left) / depth, this.canvas.height / 2 - (focal * up) / depth];
  }

  /** Draw the way of the plan on the floor, as wide as the body. */
  drawPath() {
    if (!this.facts || !this.body || this.body.x === null || this.path.length < 2) return;
    const half = this.facts.hull_m[1] / 2;
    this.pen.lineWidth = Math.max(2, this.canvas.width / 200);
    this.pen.strokeStyle = this.isVerified ? "#4fc9a0" : "#f0a957";
    for (const side of [-half, 0, half]) {
      this.pen.setLineDash(side ? [] : [8, 8]);
      this.pen.beginPath();
      let last = null;
      for (const point of this.points(side)) {
        const at = this.project(point);
        if (at && last) this.pen.lineTo(...at);
        else if (at) this.pen.moveTo(...at);
        last = at;
      }
      this.pen.stroke();
    }
    this.pen.setLineDash([]);
    const end = this.project(this.path[this.path.length - 1]);
    if (end) {
      this.pen.fillStyle = this.pen.strokeStyle;
      this.pen.beginPath();
      this.pen.arc(...end, Math.max(4, this.canvas.width / 90), 0, 7);
      this.pen.fill();
    }
  }

  *points(side) {
    for (let index = 1; index < this.path.length; index += 1) {
      const [x0, y0, yaw] = this.path[index - 1];
      const [x1, y1] = this.path[index];
      const steps = Math.ceil(Math.hypot(x1 - x0, y1 - y0) / STEP_M);
      for (let step = 0; step <= steps && steps; step += 1) {
        const share = step / steps;
        yield [x0 + share * (x1 - x0) - side * Math.sin(yaw), y0 + share * (y1 - y0) + side * Math.cos(yaw)];
      }
    }
  }
}
