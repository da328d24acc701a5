// The panels that show events as text: state, answer, plan, figures, missions, diagnostics, commands.

import { announce, byId, clock, fill, make, told } from "./dom.js";

const FIGURES = [
  ["total_s", "answer, whole", "s", 2],
  ["first_action_s", "first action after", "s", 2],
  ["link_s", "link, a round", "ms", 0, 1000],
  ["acceptance", "drafts accepted", "%", 0, 100],
  ["tokens_per_pass", "tokens a pass", "", 1],
];
const SOURCES = {
  estop: ["the emergency stop", "bad"], teleop: ["a person drives", "warning"],
  language: ["language", "good"], none: ["nobody", ""],
};
const MEANINGS = { drafted: "drafted", accepted: "accepted", corrected: "corrected", committed: "committed" };

export function chip(name, text, level = "") {
  const element = byId(`chip-${name}`);
  element.className = level;
  const shown = element.querySelector("b");
  if (shown.textContent !== text) shown.textContent = text;
}

export function onSource(event) {
  const [words, level] = SOURCES[event.source] || [event.source, ""];
  chip("source", words, level);
}

export function onCloud(event) {
  const level = { ready: "good", unavailable: "bad" }[event.state] || "warning";
  chip("cloud", event.reason ? `${event.state}: ${event.reason}` : event.state, level);
}

export function onBodyChips(event) {
  chip("posture", event.posture || "unknown");
  if (event.battery === null) chip("battery", "unknown");
  else chip("battery", `${Math.round(100 * event.battery)} %`, event.battery < 0.25 ? "bad" : "");
}

export function clearMission() {
  fill(byId("tokens"), [make("span", { cls: "muted", text: "No answer yet" })]);
  byId("answer-figures").textContent = "";
  showActions([], "No plan");
  byId("executor").textContent = "";
  byId("status-line").textContent = "No mission yet";
}

export function onMission(event) {
  const name = event.instruction ? `${event.instruction}: ` : "";
  byId("status-line").textContent = `${name}${event.words}`;
  byId("tokens").setAttribute("aria-busy", String(event.state === "answering"));
}

export function onTokens(pieces) {
  const spans = [];
  for (const [text, fate] of pieces) {
    spans.push(make("span", { cls: fate, text, title: MEANINGS[fate] }));
  }
  fill(byId("tokens"), spans.length ? spans : [make("span", { cls: "muted", text: "…" })]);
}

export function onAnswer(event, isLive) {
  onTokens(event.pieces);
  const parts = [event.strategy, `${event.tokens} tokens`, told(event.total_s, 2, "s")];
  if (event.target_passes) parts.push(`${event.target_passes} passes of the target`);
  if (event.drafted) parts.push(`${event.accepted} of ${event.drafted} drafted accepted`);
  if (event.uplink_bytes) parts.push(`${event.uplink_bytes + event.image_bytes} bytes up, ${event.downlink_bytes} down`);
  byId("answer-figures").textContent = parts.filter(Boolean).join(" · ");
  if (isLive) announce(`Answer ${event.number}: ${event.actions.join(", ")}`);
}

function showActions(rows, none) {
  fill(byId("plan"), rows);
  byId("plan").hidden = !rows.length;
  byId("no-plan").textContent = rows.length ? "" : none;
}

/** Show a plan's actions, which of them are done, and which is under way. */
export function onPlan(plan, executor) {
  const isSame = executor && executor.mission === plan.mission && executor.answer === plan.answer;
  const done = isSame ? executor.actions_done : 0;
  const rows = plan.actions.map((action, index) => {
    const isDone = index < done;
    const isNow = isSame && index === done && executor.state === "moving";
    const word = isDone ? "done" : isNow ? "now" : "";
    const children = word ? [make("span", { text: ` ${word}` })] : [];
    const row = make("li", { cls: word, text: action });
    row.append(...children);
    return row;
  });
  const note = plan.draft_start ? "on the draft, not verified" : plan.verified ? "" : "of the draft alone, not verified";
  if (note && rows.length) rows[0].append(make("span", { text: ` (${note})` }));
  showActions(rows, "No action: the robot stands");
}

export function onExecutor(event) {
  byId("executor").textContent = `robot: ${event.words}`;
}

/** Show a plan that waits for a yes or a no. */
export function onProposed(detail) {
  const actions = detail.match(/\w+\([^)]*\)/g) || [detail];
  showActions(actions.map((action) => make("li", { text: action })), "");
}

export class Figures {
  constructor() {
    this.rows = [];
    this.draw();
  }

  set(rows) {
    this.rows = rows.slice(-60);
    this.draw();
  }

  add(row) {
    this.set([...this.rows, row]);
  }

  draw() {
    fill(byId("figures"), FIGURES.map(([key, title, unit, digits, factor = 1]) => {
      const values = this.rows.map((row) => row[key]).filter((value) => value !== null).map((value) => value * factor);
      const last = values.length ? told(values[values.length - 1], digits, unit) : "none yet";
      const shown = make("dd", { text: last });
      const box = make("div", { children: [make("dt", { text: title }), shown] });
      if (values.length > 1) shown.append(sparkline(values));
      return box;
    }));
  }
}

function sparkline(values) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", "0 0 100 30");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  const top = Math.max(...values) || 1;
  const points = values.map((value, index) => [(98 * index) / (values.length - 1) + 1, 28 - (26 * value) / top]);
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.map((point) => point.map((number) => number.toFixed(1)).join(",")).join(" "));
  picture.append(line);
  return picture;
}

export function onMissions(event, onReplay) {
  const rows = event.missions.map((mission) => {
    const button = make("button", { text: "Replay", type: "button", "aria-label": `Replay: ${mission.instruction}` });
    button.onclick = () => onReplay(mission.mission);
    const lasted = mission.ended_s === null ? "" : clock(mission.ended_s - mission.began_s);
    const state = [mission.state.replace("_", " "), mission.reason].filter(Boolean).join(": ");
    return make("tr", {
      children: [
        make("td", { text: mission.instruction || mission.mission }), make("td", { text: state }),
        make("td", { text: lasted }), make("td", { children: [button] }),
      ],
    });
  });
  const none = make("tr", { children: [make("td", { cls: "muted", text: "None yet", colspan: "4" })] });
  fill(byId("missions"), rows.length ? rows : [none]);
}

export function onDiagnostics(event) {
  fill(byId("diagnostics"), event.rows.map(([part, level, message]) => make("tr", {
    children: [
      make("td", { text: part }), make("td", { cls: `level-${level}`, text: level }), make("td", { text: message }),
    ],
  })));
}

export class CommandLog {
  set(entries) {
    fill(byId("log"), entries.length ? [] : [make("li", { cls: "muted", text: "None yet" })]);
    this.isEmpty = !entries.length;
    entries.forEach((entry) => this.add(entry));
  }

  add(entry) {
    const list = byId("log");
    if (this.isEmpty !== false) fill(list, []);
    this.isEmpty = false;
    const text = `${clock(entry.t)} ${entry.who}: ${entry.command} ${entry.detail}${entry.done ? "" : " (not done)"}`;
    list.prepend(make("li", { cls: entry.done ? "" : "not-done", text }));
    while (list.children.length > 60) list.lastChild.remove();
  }
}
