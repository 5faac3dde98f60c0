"use strict";

const TYPING_EVERY = 2_000;     // milliseconds between two notices that the user is typing
const TYPING_ENDS = 5_000;

// The split view shares the storage of the page around it, so each view has keys of its own.
const view = new URLSearchParams(location.search).get("view") === "split" ? "split" : "main";
document.documentElement.dataset.view = view;

const outbox = new Outbox(`chat.${view}.outbox`);
const mine = new Set(read("sessionStorage", `chat.${view}.mine`));   // the ids of what was written here
const me = { name: "", member: null };
const logs = new Map();
const roomLines = new Map();
const typing = new Map();
const latencies = [];
let current = null;       // the RoomLog that is shown
let listedRooms = [];
let epoch = null;         // of the server's history: numbers of another one mean nothing
let atEnd = true;
let unseen = 0;
let lastTyping = -TYPING_EVERY;
let nextAttempt = null;
let lostBecause = "";

const link = new Link("/chat", {
  probe: { type: "ping" },
  onstate: showState,
  onopen() {
    sendEnter();
    for (const item of outbox.items) outbox.send(link, item);
  },
  onmessage(message) {
    handlers[message.type]?.(message);
  },
});

const handlers = {
  entered(message) {
    me.name = message.name;
    me.member = message.member;
    if (epoch !== null && epoch !== message.epoch) {
      logs.clear();
      enter(current.name);
    }
    epoch = message.epoch;
  },
  history(message) {
    $("log").ariaBusy = "true";
    logOf(message.room).fill(message);
    $("log").ariaBusy = "false";
    if (message.room === current.name) follow();
  },
  said(message) {
    logOf(message.room).hear(message);
    stopTyping(message.name);
    if (message.room === current.name) follow();
    if (document.hidden) unseen += 1;
    showTitle();
  },
  ack(message) {
    logOf(message.room).hear(message);
    showKept();
  },
  refused({ id, reason }) {
    outbox.remove(id);
    for (const log of logs.values()) log.refuse(id, reason);
    showKept();
  },
  typing({ room, name }) {
    if (room !== current.name) return;
    clearTimeout(typing.get(name));
    typing.set(name, setTimeout(stopTyping, TYPING_ENDS, name));
    showTyping();
  },
  rooms({ rooms }) {
    listedRooms = rooms;
    const room = rooms.find(({ name }) => name === current.name);
    if (room !== undefined) current.see(room.newest);
    showRooms();
  },
  members: showMembers,
};

function logOf(name) {
  if (!logs.has(name)) {
    const log = new RoomLog(name);
    logs.set(name, log);
    for (const item of outbox.items) if (item.room === name) log.addPending(item);
    log.showOutcomes();
  }
  return logs.get(name);
}

function enter(name) {
  current = logOf(name);
  $("log").replaceChildren(current.list);
  $("room-title").textContent = name;
  $("text-label").textContent = `Message to ${name}`;
  $("new-tab").hash = `/${encodeURIComponent(name)}`;
  for (const typist of [...typing.keys()]) stopTyping(typist);
  atEnd = true;
  sendEnter();
  showRooms();
  showTitle();
  follow();
}

function sendEnter() {
  if (current !== null) current.fetching = link.ask({ type: "enter", room: current.name, name: me.name, after: current.newest });
}

function say(text) {
  const item = outbox.add(current.name, text);
  mine.add(item.id);
  write("sessionStorage", `chat.${view}.mine`, [...mine].slice(-SHOWN_MESSAGES));
  current.addPending(item);
  outbox.send(link, item);
  current.showOutcomes();
  showKept();
  atEnd = true;
  follow();
}

// The functions that show something.

function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// Screen readers read the state aloud. It does not change with each attempt: the text above the field has these.
function showState(state, { next = null, reason = "" } = {}) {
  const wasLost = !$("offline").hidden;
  $("state").dataset.state = state;
  if (state === "open") $("state").textContent = "Connected";
  else if (state === "waiting") $("state").textContent = "No connection";
  else if (!wasLost) $("state").textContent = "Connecting";
  if (state === "waiting") {
    for (const log of logs.values()) log.fetching = false;
    lostBecause = reason;
  }
  nextAttempt = next;
  $("offline").hidden = state === "open" || (state === "connecting" && !wasLost);
  for (const log of logs.values()) log.showOutcomes();
  showNextAttempt();
  showKept();
}

function showNextAttempt() {
  const because = lostBecause ? ` (${lostBecause})` : "";
  const seconds = Math.max(Math.ceil((nextAttempt - Date.now()) / 1000), 1);
  $("offline-text").textContent = nextAttempt === null ? "Trying to connect…" : `No connection${because}. Next attempt in ${seconds} s.`;
}

function showKept() {
  const kept = outbox.items.length;
  $("offline-kept").textContent = kept === 0 ? "You can go on writing." : `${count(kept, "message")} will be sent when it is back.`;
}

function showLatency(latency) {
  latencies.push(latency);
  if (latencies.length > 30) latencies.shift();
  const highest = Math.max(...latencies);
  const points = latencies.map((each, index) => `${(index / Math.max(latencies.length - 1, 1)) * 60},${15 - (each / highest) * 13}`);
  $("latency-line").setAttribute("points", points.join(" "));
  $("latency-value").textContent = milliseconds(latency);
  $("latency").hidden = false;
}

// The links stay the same elements as long as their rooms are listed: an update does not take the focus, or a click.
function showRooms() {
  const rooms = [...listedRooms];
  if (!rooms.some(({ name }) => name === current.name)) rooms.push({ name: current.name, members: 0, newest: 0 });
  const lines = rooms.map(showRoom);
  const list = $("rooms").querySelector("ul");
  if (lines.length === list.children.length && lines.every((line, index) => line === list.children[index])) return;
  const focused = document.activeElement;
  list.replaceChildren(...lines);
  if (list.contains(focused)) focused.focus();
  for (const [name, line] of roomLines) if (line.parentElement === null) roomLines.delete(name);
}

function showRoom({ name, members, newest }) {
  if (!roomLines.has(name)) {
    const anchor = element("a", { href: `#/${encodeURIComponent(name)}` },
      element("span", { className: "label", textContent: name }), element("span", { className: "unread" }), element("span", { className: "size" }));
    roomLines.set(name, element("li", {}, anchor));
  }
  const line = roomLines.get(name);
  const anchor = line.firstElementChild;
  const [, unreadCell, sizeCell] = anchor.children;
  const log = logs.get(name);
  const unread = log === undefined || log === current || log.newest === null ? 0 : Math.max(newest - log.newest, 0);
  unreadCell.textContent = unread;
  unreadCell.hidden = unread === 0;
  sizeCell.textContent = members;
  sizeCell.hidden = members === 0;
  anchor.ariaLabel = `${name}${unread > 0 ? `, ${unread} unread` : ""}, ${members} here`;
  if (log === current) anchor.setAttribute("aria-current", "page");
  else anchor.removeAttribute("aria-current");
  return line;
}

function showMembers({ room, members, count: total }) {
  if (room !== current.name) return;
  $("member-count").textContent = total;
  const lines = members.map(({ id, name }) => {
    const line = element("li", {}, avatar(name), element("bdi", { textContent: name }));
    if (id === me.member) line.append(element("small", { textContent: "(you)" }));
    return line;
  });
  if (total > members.length) lines.push(element("li", { className: "rest", textContent: `and ${total - members.length} more` }));
  $("members").querySelector("ul").replaceChildren(...lines);
}

function stopTyping(name) {
  clearTimeout(typing.get(name));
  typing.delete(name);
  showTyping();
}

function showTyping() {
  const names = [...typing.keys()];
  const words = ["", `${names[0]} is typing…`, `${names[0]} and ${names[1]} are typing…`];
  $("typing").textContent = words[names.length] ?? `${names.length} people are typing…`;
}

function showTitle() {
  document.title = `${unseen > 0 ? `(${unseen}) ` : ""}${current.name} - wshub chat`;
}

// Shows the newest message, unless the user has scrolled up to read older ones.
function follow() {
  if (atEnd) $("log").scrollTop = $("log").scrollHeight;
  else $("to-end").hidden = false;
}

// The actions of the user.

$("log").addEventListener("scroll", () => {
  const box = $("log");
  atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  if (atEnd) $("to-end").hidden = true;
});
new ResizeObserver(() => { if (atEnd) follow(); }).observe($("log"));
$("to-end").addEventListener("click", () => {
  atEnd = true;
  follow();
  $("text").focus();
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  $("text").value = "";
  $("text").focus();
  lastTyping = -TYPING_EVERY;
  if (text) say(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("say").requestSubmit();
});
$("text").addEventListener("input", () => {
  if (!$("text").value.trim() || performance.now() - lastTyping < TYPING_EVERY) return;
  lastTyping = performance.now();
  link.send({ type: "typing" });
});

function roomOfAddress() {
  let name = "";
  try { name = decodeURIComponent(location.hash.replace(/^#\/?/, "")); } catch { /* not an address of a room */ }
  name = name.toLowerCase().replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "");
  return [...name].slice(0, 32).join("") || "general";
}

addEventListener("hashchange", () => { if (current !== null) enter(roomOfAddress()); });
$("add-room").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("new-room").value.trim()) location.hash = `#/${encodeURIComponent($("new-room").value.trim())}`;
  $("new-room").value = "";
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("text").focus();
});

// The network has changed, or the machine was asleep: find out at once whether the connection still works.
function recover() {
  if (current !== null) link.retry();
}

$("retry").addEventListener("click", recover);
addEventListener("online", recover);
addEventListener("offline", recover);
document.addEventListener("visibilitychange", () => {
  if (document.hidden || current === null) return;
  unseen = 0;
  showTitle();
  recover();
});
addEventListener("beforeunload", (event) => { if (outbox.items.length > 0) event.preventDefault(); });
setInterval(() => { if (nextAttempt !== null) showNextAttempt(); }, 250);

$("split").addEventListener("click", () => {
  const opens = $("second").hidden;
  const frame = element("iframe", { title: "The chat, as another member", src: `/?view=split#/${encodeURIComponent(current.name)}` });
  $("second").replaceChildren(...(opens ? [frame] : []));
  $("second").hidden = !opens;
  document.querySelector("main").classList.toggle("split", opens);
  $("split").ariaPressed = String(opens);
});

// The name, and the beginning.

const SUGGESTIONS = [["Amber", "Brisk", "Calm", "Clever", "Gentle", "Lucky", "Quiet", "Swift"], ["Badger", "Crane", "Finch", "Heron", "Lynx", "Otter", "Puffin", "Stoat"]];

function suggestName() {
  return SUGGESTIONS.map((words) => words[Math.floor(Math.random() * words.length)]).join(" ");
}

function askName() {
  $("name").value = me.name || suggestName();
  $("join").showModal();
  $("name").select();
}

function join(name) {
  me.name = name;
  write("sessionStorage", `chat.${view}.name`, name);
  if (current === null) {
    enter(roomOfAddress());
    link.connect();
  } else {
    sendEnter();
  }
  $("text").focus();
}

$("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("join").close();
  join($("name").value.trim() || suggestName());
});
$("join").addEventListener("cancel", () => { if (current === null) join(suggestName()); });
$("rename").addEventListener("click", askName);

if (matchMedia("(max-width: 52rem)").matches) document.querySelector("#members details").open = false;
const knownName = new URLSearchParams(location.search).get("name") ?? read("sessionStorage", `chat.${view}.name`);
if (knownName || view === "split") join(knownName || suggestName());
else askName();
