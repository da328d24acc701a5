// The map: where the body is and was by odometry, where the plan leads, what the ranges see, the geofence.

import { byId, colour, told } from "./dom.js";

const TRAIL = 3000;
const FAR_M = 4;

export class FloorMap {
  constructor() {
    this.canvas = byId("map");
    this.metres = 5;
    byId("zoom-in").onclick = () => this.zoom(1 / 1.4);
    byId("zoom-out").onclick = () => this.zoom(1.4);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.facts = null;
    this.clear();
  }

  clear() {
    this.trail = [];
    this.body = null;
    this.path = [];
    this.isVerified = true;
    this.draw();
  }

  zoom(factor) {
    this.metres = Math.min(40, Math.max(1.5, this.metres * factor));
    this.draw();
  }

  onBody(body) {
    this.body = body.x === null ? null : body;
    if (this.body) {
      const last = this.trail[this.trail.length - 1];
      if (!last || Math.hypot(body.x - last[0], body.y - last[1]) > 0.03) this.trail.push([body.x, body.y]);
      if (this.trail.length > TRAIL) this.trail.splice(0, this.trail.length - TRAIL);
    }
    this.draw();
  }

  onPath(path, isVerified) {
    this.path = path || [];
    this.isVerified = isVerified;
    this.draw();
  }

  /** Draw at the next frame of the screen. */
  draw() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      this.drawNow();
    });
  }

  drawNow() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!width) return;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = (this.pen = this.canvas.getContext("2d"));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const scale = height / this.metres;
    const [cx, cy] = this.body ? [this.body.x, this.body.y] : [0, 0];
    // x of odometry points up, y to the left, as on a map that lies in front of the robot at its start.
    this.at = ([x, y]) => [width / 2 - (y - cy) * scale, height / 2 - (x - cx) * scale];
    this.drawGrid(cx, cy, width / scale / 2, this.metres / 2);
    this.line(this.facts ? this.facts.geofence : [], "purple", 3, [2, 5], true);
    this.line(this.trail, "muted", 3);
    if (this.path.length > 1) {
      this.line(this.path, this.isVerified ? "accent" : "warning", 3, [8, 6]);
      const [x, y] = this.at(this.path[this.path.length - 1]);
      pen.fillStyle = colour(this.isVerified ? "accent" : "warning");
      pen.beginPath();
      pen.arc(x, y, 5, 0, 7);
      pen.fill();
    }
    if (this.body && this.facts) this.drawBody(scale);
    this.describe();
  }

  drawGrid(cx, cy, halfWidth, halfHeight) {
    const pen = this.pen;
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1;
    const step = this.metres > 16 ? 5 : 1;
    for (let x = Math.ceil((cx - halfHeight) / step) * step; x <= cx + halfHeight; x += step) {
      this.segment([x, cy - halfWidth], [x, cy + halfWidth]);
    }
    for (let y = Math.ceil((cy - halfWidth) / step) * step; y <= cy + halfWidth; y += step) {
      this.segment([cx - halfHeight, y], [cx + halfHeight, y]);
    }
    pen.fillStyle = colour("muted");
    pen.font = `12px ${colour("font")}`;
    pen.fillText(`grid ${step} m`, 8, 16);
  }

  segment(from, to) {
    this.pen.beginPath();
    this.pen.moveTo(...this.at(from));
    this.pen.lineTo(...this.at(to));
    this.pen.stroke();
  }

  line(points, name, width, dash = [], isClosed = false) {
    if (points.length < 2) return;
    const pen = this.pen;
    pen.strokeStyle = colour(name);
    pen.lineWidth = width;
    pen.setLineDash(dash);
    pen.beginPath();
    points.forEach((point, index) => pen[index ? "lineTo" : "moveTo"](...this.at(point)));
    if (isClosed) pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
  }

  drawBody(scale) {
    const pen = this.pen;
    const { yaw, ranges } = this.body;
    const [length, width] = this.facts.hull_m;
    const [x, y] = this.at([this.body.x, this.body.y]);
    pen.save();
    pen.translate(x, y);
    pen.rotate(-yaw);
    pen.fillStyle = colour("text");
    pen.fillRect((-width / 2) * scale, (-length / 2) * scale, width * scale, length * scale);
    pen.fillStyle = colour("ground");
    pen.beginPath();
    pen.moveTo(0, -0.4 * length * scale);
    pen.lineTo(0.3 * width * scale, -0.1 * length * scale);
    pen.lineTo(-0.3 * width * scale, -0.1 * length * scale);
    pen.fill();
    pen.strokeStyle = colour("bad");
    pen.lineWidth = 5;
    // Front, left, rear and right; each is measured from the body's edge.
    (ranges || []).forEach((range, side) => {
      if (range === null || range > FAR_M) return;
      const reach = (side % 2 ? width / 2 : length / 2) + range;
      const half = side % 2 ? length / 2 : width / 2;
      pen.save();
      pen.rotate((-side * Math.PI) / 2);
      pen.beginPath();
      pen.moveTo(-half * scale, -reach * scale);
      pen.lineTo(half * scale, -reach * scale);
      pen.stroke();
      pen.restore();
    });
    pen.restore();
  }

  describe() {
    let text = "Map: position not known";
    if (this.body) {
      const { x, y, yaw, ranges } = this.body;
      text = `Map: at x ${told(x, 1)} m, y ${told(y, 1)} m, heading ${told((yaw * 180) / Math.PI, 0)} degrees`;
      if (ranges && ranges[0] !== null) text += `, free ahead ${told(ranges[0], 1)} m`;
      if (this.path.length > 1) text += `; the plan has ${this.path.length - 1} steps`;
    }
    this.canvas.setAttribute("aria-label", text);
  }
}
