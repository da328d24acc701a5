// The console: connects, passes events to the panels, and commands.

import { Camera } from "./camera.js";
import { Connection, ask, keepToken, keptToken, stopByRequest, takeToken } from "./connection.js";
import { announce, byId, fill, make } from "./dom.js";
import { DrivePad, isTextField } from "./drive.js";
import { FloorMap } from "./map.js";
import * as panels from "./panels.js";
import { Replay } from "./replay.js";
import { keepStopInSight } from "./stop_bar.js";

const ENDED = new Set(["done", "step_limit", "refused", "cancelled", "failed"]);
const HISTORY = "vsd-instructions";
const READ_MS = 400; // a click so soon after the plan has changed was meant for the one before
const REPLAYED = new Set(["mission", "tokens", "answer", "plan", "executor", "body"]);

const camera = new Camera();
const map = new FloorMap();
const figures = new panels.Figures();
const log = new panels.CommandLog();
const live = new Map();
const pad = new DrivePad((message) => connection !== null && connection.send(message));
const replay = new Replay(show, clearPanels, backToNow);

let connection = null;
let may = new Set();
let mission = "";
let isStopped = false;
let proposed = null; // the event of the plan that waits for a yes, and of the question that waits for a word
let asked = null;
let shownPlan = null;
let shownExecutor = null;
let changedAt = -Infinity;
const warnings = { link: "", fault: "", stop: "", all: "", others: "" };
let history = JSON.parse(sessionStorage.getItem(HISTORY) || "[]");
let historyAt = history.length;

// Events ----------------------------------------------------------------------------------------------

function onEvents(events) {
  for (const event of events) {
    if (event.type === "welcome") onWelcome(event);
    else if (event.type === "missions") panels.onMissions(event, askReplay);
    else if (event.type === "commands") log.set(event.commands);
    else if (event.type === "command") log.add(event);
    else if (event.type === "figures") figures.set(event.figures);
    else if (event.type === "figure") figures.add(event.figure);
    else if (event.type === "diagnostics") panels.onDiagnostics(event);
    else if (event.type === "cloud") panels.onCloud(event);
    else if (event.type === "driver") byId("drive-note").textContent = event.who ? `${event.who} drives` : "";
    else if (event.type === "replay") beginReplay(event);
    else if (event.type === "refused" && event.id === null) note(event.detail, true);
    else onShown(event);
  }
}

function onShown(event) {
  if (event.aside) return; // of a mission that only waits: the list of missions shows it
  live.set(event.type, event);
  if (event.type === "mission") onLiveMission(event);
  if (event.type === "source") onLiveSource(event);
  if (event.type === "body") panels.onBodyChips(event);
  if (!replay.isOn) show(event, true);
}

/** Show one event, of now or of a replayed mission. */
function show(event, isLive = false) {
  if (!REPLAYED.has(event.type)) return;
  if (event.type === "mission") {
    panels.onMission(event);
    if (!isLive && event.state === "answering") showFrame(event.mission, event.step);
    if (event.state === "proposed") {
      shownPlan = null; // what is sent meanwhile is a plan without actions
      panels.onProposed(event.detail);
      showPath(event.path || [], true);
    }
  } else if (event.type === "tokens") {
    panels.onTokens(event.pieces);
  } else if (event.type === "answer") {
    panels.onAnswer(event, isLive);
    if (!isLive && event.has_frame) showFrame(event.mission, event.number);
  } else if (event.type === "plan") {
    shownPlan = event;
    panels.onPlan(event, shownExecutor);
    showPath(event.path, event.verified);
  } else if (event.type === "executor") {
    shownExecutor = event;
    panels.onExecutor(event);
    if (shownPlan && shownPlan.answer === event.answer) panels.onPlan(shownPlan, event);
  } else if (event.type === "body") {
    camera.body = event;
    map.onBody(event);
  }
}

function showPath(path, isVerified) {
  camera.path = path;
  camera.isVerified = isVerified;
  map.onPath(path, isVerified);
}

/** Show the picture that an answer was about, if it is kept. */
async function showFrame(name, answer) {
  if (!replay.isOn) return;
  const blob = await connection.frame(name, answer);
  if (blob && replay.isOn) {
    await camera.show(blob);
    camera.say(`The picture of answer ${answer}`);
  }
}

function clearPanels() {
  shownPlan = shownExecutor = null;
  panels.clearMission();
  map.clear();
  showPath([], true);
}

// Replay ----------------------------------------------------------------------------------------------

function askReplay(name) {
  connection.send({ type: "replay", mission: name });
}

function beginReplay(event) {
  if (!event.events) {
    note("That mission is not kept any more", true);
    return;
  }
  camera.isReplaying = true;
  camera.clear("No picture of this moment is kept");
  const first = event.events.find((each) => each.instruction);
  byId("decision").hidden = true;
  replay.begin(first ? first.instruction : event.mission, event.events);
}

function backToNow() {
  camera.isReplaying = false;
  camera.clear("No picture yet");
  clearPanels();
  for (const event of live.values()) show(event, true);
  if (live.has("mission")) onLiveMission(live.get("mission"));
}

// State -----------------------------------------------------------------------------------------------

function onWelcome(event) {
  live.clear();
  // Nothing of another robot, or of a console that was here before, until the events that follow say so.
  mission = "";
  asked = proposed = null;
  byId("decision").hidden = byId("asked").hidden = true;
  onLiveSource({ source: "unknown" });
  if (!replay.isOn) clearPanels();
  map.facts = camera.facts = event.facts;
  may = new Set(event.may);
  byId("title").textContent = event.facts.title;
  document.title = `${event.facts.name}: robot console`;
  panels.chip("may", may.has("command") ? "look and command" : "look, and stop");
  enable();
}

function enable() {
  const isAble = may.has("command") && connection !== null && connection.isOpen;
  for (const element of document.querySelectorAll("[data-needs=command]")) element.disabled = !isAble;
  byId("withdraw").disabled = !(isAble && mission);
}

function onLiveMission(event) {
  mission = ENDED.has(event.state) ? "" : event.mission;
  byId("withdraw").disabled = !(mission && may.has("command"));
  const waits = event.state === "proposed" && event.reason === "approve";
  if (waits && byId("decision").hidden) announce(`A plan waits for your decision: ${event.detail}`);
  if (waits && proposed && proposed.detail !== event.detail) changedAt = performance.now();
  proposed = waits ? event : null;
  byId("decision").hidden = !waits || replay.isOn;
  onQuestion(event.state === "waiting" ? event : null);
  if (ENDED.has(event.state)) announce(`Mission ended: ${event.words}`);
}

/** Show what the robot asks, with a button for each choice that it offers; null: nothing. */
function onQuestion(event) {
  const isNew = event && !(asked && asked.mission === event.mission && asked.step === event.step);
  asked = event;
  byId("asked").hidden = !event;
  if (!isNew) return;
  byId("question").textContent = `The robot asks: ${event.detail}`;
  byId("reply").value = byId("reply-note").textContent = "";
  fill(byId("choices"), event.choices.map((text) => {
    const button = make("button", { text, type: "button", "data-needs": "command" });
    button.onclick = () => reply(text);
    return button;
  }));
  enable();
  announce(`The robot asks: ${event.detail}`);
}

async function reply(word) {
  if (!asked || !word.trim()) return;
  const { mission: name, step } = asked;
  try {
    await connection.command("reply", { mission: name, step, word });
    note(`Replied: ${word}`);
  } catch (error) {
    byId("reply-note").textContent = error.message;
  }
}

function onLiveSource(event) {
  panels.onSource(event);
  const was = isStopped;
  isStopped = event.source === "estop";
  if (isStopped) pad.end();
  byId("stop").classList.toggle("engaged", isStopped);
  byId("stop").textContent = isStopped ? "STOPPED" : "STOP";
  byId("release").hidden = !isStopped;
  if (isStopped) warn("fault", "");
  if (was && !isStopped) warn("all", "");
  if (isStopped !== was) warn("stop", isStopped ? "The emergency stop is engaged: nothing moves the robot." : "");
}

/** Show a warning of a kind above everything else, "" for none any more. One does not hide another. */
function warn(kind, text) {
  warnings[kind] = text;
  const shown = Object.values(warnings).filter(Boolean).join(" ");
  if (byId("banner").textContent !== shown) byId("banner").textContent = shown;
  byId("banner").hidden = !shown;
}

function note(text, isBad = false) {
  const element = byId("command-note");
  element.textContent = text;
  element.classList.toggle("not-done", isBad);
}

function onState(isOpen) {
  panels.chip("page", isOpen ? "connected" : "not connected", isOpen ? "good" : "bad");
  document.documentElement.classList.toggle("offline", !isOpen);
  if (isOpen) {
    if (!camera.socket) camera.follow(connection);
    warn("link", "");
  } else {
    pad.end();
    camera.lose();
    warn("link", "Offline: not connected to the robot's computer. What you see is old. STOP is tried all the same.");
  }
  enable();
}

// Commands --------------------------------------------------------------------------------------------

async function command(name, fields, done = "") {
  try {
    const detail = await connection.command(name, fields);
    note(done || detail);
    return true;
  } catch (error) {
    note(error.message, true);
    return false;
  }
}

async function stop(isForAll = false) {
  pad.end();
  // It looks engaged only when the robot's side says so.
  if (!isStopped) byId("stop").textContent = "STOPPING…";
  if (isForAll) byId("stop-all").textContent = "STOPPING ALL…";
  try {
    // Before there is a connection it is not known which robot is meant: all of them stop.
    const found = await (connection ? connection.stop(isForAll) : stopByRequest(keptToken()));
    announce(`Stopped: ${found}`);
    warn("fault", "");
    if (isForAll) {
      warn("others", "");
      warn("all", `All robots were stopped; each stays so until it is released. ${found}.`);
    }
    if (!connection || !connection.isOpen) note(`Stopped: ${found}`);
  } catch (error) {
    // That this robot is seen to stand says nothing about the others.
    if (isForAll) warn("others", `The stop may not have reached every robot: ${error.message}.`);
    else warn("fault", `The stop may not have reached the robot: ${error.message}.`);
  }
  byId("stop").textContent = isStopped ? "STOPPED" : "STOP";
  byId("stop-all").textContent = "STOP ALL ROBOTS";
}

for (const [name, isForAll] of [["stop", false], ["stop-all", true]]) {
  byId(name).addEventListener("pointerdown", (event) => {
    // On the way down: a finger that slides off has stopped the robot, too.
    if (!event.button) stop(isForAll);
  });
  byId(name).addEventListener("click", (event) => event.detail === 0 && stop(isForAll));
}
byId("release").onclick = () => command("release", {}, "The stop is released");
byId("approve").onclick = () => decide("approve");
byId("reject").onclick = () => decide("reject");
byId("withdraw").onclick = () => command("withdraw", { mission }, "The mission ends");

/** Approve or reject the plan that is shown: it is named, since another one may wait by then. */
async function decide(name) {
  if (!proposed) return;
  if (performance.now() - changedAt < READ_MS) {
    note("The plan has just changed: look at it first", true);
    return;
  }
  const plan = proposed;
  byId("decision").hidden = true;
  const fields = { mission: plan.mission, step: plan.step, plan: plan.detail };
  const isDone = await command(name, fields, name === "approve" ? "Approved" : "Rejected");
  if (!isDone && proposed === plan) byId("decision").hidden = replay.isOn;
}

byId("reply-form").addEventListener("submit", (event) => {
  event.preventDefault();
  reply(byId("reply").value);
});

byId("instruct").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("instruction");
  const instruction = field.value.trim();
  if (!instruction) return;
  const fields = { instruction, approve: byId("approve-first").checked, queue: byId("queue-up").checked };
  if (!(await command("instruct", fields, "Sent"))) return;
  history = [...history.filter((each) => each !== instruction), instruction].slice(-30);
  sessionStorage.setItem(HISTORY, JSON.stringify(history));
  historyAt = history.length;
  field.value = "";
  showHistory();
});

function showHistory() {
  fill(byId("history"), history.map((text) => make("option", { value: text })));
}

byId("instruction").addEventListener("keydown", (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  historyAt = Math.min(history.length, Math.max(0, historyAt + step));
  byId("instruction").value = history[historyAt] || "";
});

// Space stops wherever it types or ticks nothing; Escape stops everywhere.
addEventListener("keydown", (event) => {
  const isSpace = event.code === "Space" && !isTextField(event.target) && !event.target.matches("input, select");
  if (!isSpace && event.code !== "Escape") return;
  event.preventDefault();
  if (!event.repeat) stop(isSpace && event.target === byId("stop-all"));
}, { capture: true });
addEventListener("keyup", (event) => {
  // A button takes the release of the space bar for a click.
  if (event.code === "Space" && event.target.matches("button")) event.preventDefault();
}, { capture: true });
addEventListener("click", (event) => {
  // After a click by pointer nothing keeps the space bar for itself.
  const control = event.target.closest("button, input[type=checkbox], input[type=range]");
  if (control && event.detail) control.blur();
});

// Start -----------------------------------------------------------------------------------------------

function open(token, robot) {
  pad.end();
  if (connection) connection.close();
  replay.isOn && replay.end();
  connection = new Connection(token, robot, onEvents, onState);
  camera.follow(connection);
}

async function begin(token) {
  const found = token ? await ask(token) : { refused: true };
  byId("token-form").hidden = !found.refused;
  if (found.refused) {
    panels.chip("page", "needs a token", "warning");
    byId("token-fault").textContent = token ? "This token is not known here." : "";
    byId("token").focus();
    return;
  }
  if (found.away) {
    onState(false);
    setTimeout(() => begin(token), 2000);
    return;
  }
  keepToken(token);
  const choice = byId("robots");
  fill(choice, found.robots.map(({ name, title }) => make("option", { value: name, text: `${name}: ${title}` })));
  byId("robot-choice").hidden = byId("stop-all").hidden = found.robots.length < 2;
  choice.onchange = () => {
    warn("others", ""); // whoever looks at another robot sees how that one does
    open(token, choice.value);
  };
  open(token, found.robots[0].name);
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(byId("token").value.trim());
});
keepStopInSight();
showHistory();
enable();
begin(takeToken());
addEventListener("hashchange", () => location.hash.includes("token=") && begin(takeToken()));
