"use strict";

// The chat and the dashboard share this: elements, storage, colours, and a connection that comes back.

const HEARTBEAT = 15_000;       // milliseconds without a message after which the connection is tried
const ANSWER_TIMEOUT = 5_000;   // milliseconds that the server has for an answer; without one the connection is dead
const STABLE_AFTER = 5_000;     // milliseconds after which an open connection counts as a success
const LONGEST_DELAY = 30_000;

const CLOSE_CODES = { 1001: "the server stops", 1012: "the server restarts", 1013: "this tab was too slow" };

const $ = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function read(area, key) {
  try { return JSON.parse(window[area].getItem(key)); } catch { return null; }
}

function write(area, key, value) {
  try { window[area].setItem(key, JSON.stringify(value)); } catch { /* The browser keeps nothing. The page works without. */ }
}

// Half of the delay is random, so that the clients of a server that restarts do not all come back at the same moment.
function delayBefore(attempt) {
  return Math.min(500 * 2 ** attempt, LONGEST_DELAY) * (0.5 + Math.random() / 2);
}

// A WebSocket that comes back by itself.
//
// `onstate` is called with "connecting", "open", or "waiting" and { next, reason }: the time of the next attempt, and why
// the connection has ended. `probe` is a message that the server answers.
class Link {
  #socket = null;
  #attempt = 0;
  #retry = 0;        // the timer of the next attempt
  #watch = 0;        // the timer that looks whether the server is still there
  #openedAt = 0;
  #heardAt = 0;
  #deadline = null;  // when the connection is dead unless something has arrived

  constructor(path, { probe, onstate, onmessage, onopen = () => {} }) {
    Object.assign(this, { path, probe, onstate, onmessage, onopen });
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  // Connects, or connects anew to another path.
  connect(path = this.path) {
    this.path = path;
    this.#drop();
    const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}${path}`);
    this.#socket = socket;
    this.#deadline = performance.now() + 2 * ANSWER_TIMEOUT;
    this.#watch = setInterval(() => this.#check(), 500);
    socket.onopen = () => {
      this.#openedAt = performance.now();
      this.#hear();
      this.onstate("open");
      this.onopen();
    };
    socket.onmessage = ({ data }) => {
      this.#hear();
      this.onmessage(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => this.#lose(CLOSE_CODES[code] ?? reason);
    this.onstate("connecting");
  }

  // Returns whether the message is on its way. It may still be lost with the connection.
  send(message) {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
    return this.isOpen;
  }

  // Sends a message that the server answers. Without an answer, the connection is dead.
  ask(message) {
    const isSent = this.send(message);
    if (isSent) this.#deadline ??= performance.now() + ANSWER_TIMEOUT;
    return isSent;
  }

  // Tries at once whether the connection works, or to connect.
  retry() {
    if (this.#socket === null) this.connect();
    else this.ask(this.probe);
  }

  #hear() {
    this.#heardAt = performance.now();
    this.#deadline = null;
  }

  // A network that has gone says nothing: only a missing answer tells.
  #check() {
    const now = performance.now();
    if (this.isOpen && now > this.#openedAt + STABLE_AFTER) this.#attempt = 0;
    if (this.#deadline === null && now > this.#heardAt + HEARTBEAT) this.ask(this.probe);
    else if (this.#deadline !== null && now > this.#deadline) this.#lose("the server does not answer");
  }

  #lose(reason) {
    this.#drop();
    const delay = delayBefore(this.#attempt++);
    this.#retry = setTimeout(() => this.connect(), delay);
    this.onstate("waiting", { next: Date.now() + delay, reason });
  }

  #drop() {
    clearTimeout(this.#retry);
    clearInterval(this.#watch);
    if (this.#socket === null) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    // The closing handshake of a dead connection takes its time: nothing waits for it.
    this.#socket.close();
    this.#socket = null;
  }
}

// The colours are the system's, unless the user has chosen others. All tabs follow the choice.
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = read("localStorage", "theme");

function showTheme() {
  if (chosenTheme === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosenTheme;
  $("theme").ariaPressed = String((chosenTheme ?? (systemIsDark.matches ? "dark" : "light")) === "dark");
  dispatchEvent(new Event("themechange"));
}

$("theme").addEventListener("click", () => {
  chosenTheme = $("theme").ariaPressed === "true" ? "light" : "dark";
  write("localStorage", "theme", chosenTheme);
  showTheme();
});
systemIsDark.addEventListener("change", showTheme);
addEventListener("storage", () => {
  chosenTheme = read("localStorage", "theme");
  showTheme();
});
showTheme();

// The page may be served without the other one.
for (const anchor of document.querySelectorAll("a[data-other]")) {
  fetch(anchor.pathname, { method: "HEAD" }).then(({ ok }) => { anchor.hidden = !ok; }, () => {});
}
