"use strict";

// The messages of a room, and those that the server has not acknowledged. `chat.js` defines the other names.

const SHOWN_MESSAGES = 500;     // of each room

// The messages that the server has not acknowledged. They survive a reload of the page.

class Outbox {
  constructor(key) {
    this.key = key;
    this.items = read("sessionStorage", key) ?? [];
    this.sentAt = new Map();
  }

  add(room, text) {
    const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    const item = { id, room, text, time: Date.now() };
    this.items.push(item);
    write("sessionStorage", this.key, this.items);
    return item;
  }

  // Removes a message. Returns the milliseconds since it was sent, or null if it was not there.
  remove(id) {
    const sentAt = this.sentAt.get(id);
    this.sentAt.delete(id);
    if (!this.items.some((item) => item.id === id)) return null;
    this.items = this.items.filter((item) => item.id !== id);
    write("sessionStorage", this.key, this.items);
    return sentAt === undefined ? null : performance.now() - sentAt;
  }

  send(link, item) {
    this.sentAt.set(item.id, performance.now());
    return link.ask({ type: "say", id: item.id, room: item.room, text: item.text });
  }
}

// All text of users becomes textContent, never markup.
function avatar(name) {
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 65_521;
  const made = element("span", { className: "avatar", ariaHidden: "true", textContent: [...name][0].toUpperCase() });
  made.style.setProperty("--hue", (hash * 137.5) % 360);   // the golden angle: neighbours differ
  return made;
}

class RoomLog {
  constructor(name) {
    this.name = name;
    this.newest = null;     // the number up to which nothing is missing; null until the server has told it
    this.fetching = false;
    this.list = element("ol");
    this.numbered = new Set();
    this.pending = new Map();
  }

  addPending(item) {
    const line = this.#line({ ...item, name: me.name });
    line.classList.add("pending");
    this.pending.set(item.id, line);
    this.list.append(line);
    this.#group(line);
  }

  // Shows a message once, in its place, however often it comes.
  add(entry) {
    if (this.numbered.has(entry.number)) return;
    const latency = outbox.remove(entry.id);
    let line = this.pending.get(entry.id);
    if (line === undefined) {
      line = this.#line(entry);
    } else {
      this.pending.delete(entry.id);
      line.classList.remove("pending");
      line.querySelector(".text").textContent = entry.text;
      const outcome = line.querySelector(".outcome");
      outcome.replaceChildren(element("span", { className: "unseen", textContent: "delivered " }), "✓");
      if (latency !== null) {
        outcome.append(` ${milliseconds(latency)}`);
        showLatency(latency);
      }
    }
    line.number = entry.number;
    this.numbered.add(entry.number);
    this.#place(line);
    this.#trim();
  }

  refuse(id, reason) {
    const line = this.pending.get(id);
    if (line === undefined) return;
    this.pending.delete(id);
    line.classList.replace("pending", "refused");
    line.querySelector(".outcome").textContent = `Not sent. ${reason}`;
  }

  #addNotice(text, number) {
    const line = element("li", { className: "gap", textContent: text });
    line.number = number;
    this.#place(line);
  }

  // One message that has just been said.
  hear(entry) {
    this.add(entry);
    if (this.newest !== null && entry.number > this.newest) {
      if (entry.number === this.newest + 1) this.newest = entry.number;
      else this.fetch();
    }
  }

  // The messages that come after a number.
  fill({ after, newest, messages }) {
    this.fetching = false;
    const missing = (messages[0]?.number ?? newest + 1) - after - 1;
    if (this.newest !== null && missing > 0) this.#addNotice(`${missing} older messages are no longer kept.`, after + 0.5);
    for (const entry of messages) this.add(entry);
    this.newest = Math.max(this.newest ?? 0, messages.at(-1)?.number ?? newest);
    this.see(newest);
  }

  // Fetches what is missing up to a number.
  see(newest) {
    if (this.newest !== null && newest > this.newest) this.fetch();
  }

  fetch() {
    if (!this.fetching) this.fetching = link.ask({ type: "fetch", room: this.name, after: this.newest });
  }

  showOutcomes() {
    const text = link.isOpen ? "sending" : "kept until the connection is back";
    for (const line of this.pending.values()) line.querySelector(".outcome").textContent = text;
  }

  #line({ id, name, text, time }) {
    const at = new Date(time);
    const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const line = element("li", { className: "message" }, avatar(name), element("div", { className: "body" },
      element("p", { className: "by" }, element("bdi", { textContent: name }), element("time", { dateTime: at.toISOString(), textContent: clock })),
      element("p", { className: "text", dir: "auto", textContent: text }),
      element("p", { className: "outcome" })));
    line.author = name;
    line.time = time;
    line.classList.toggle("mine", mine.has(id));
    if (!this.fetching) line.classList.add("arrives");
    return line;
  }

  // Numbered lines come in their order, and the pending ones after them.
  #place(line) {
    let before = this.list.lastElementChild;
    while (before !== null && (before === line || !(before.number < line.number))) before = before.previousElementSibling;
    const next = before === null ? this.list.firstElementChild : before.nextElementSibling;
    if (next !== line) this.list.insertBefore(line, next);
    this.#group(line);
    if (line.nextElementSibling !== null) this.#group(line.nextElementSibling);
  }

  // A message shortly after one of the same author does not repeat the name.
  #group(line) {
    const before = line.previousElementSibling;
    line.classList.toggle("follows", before !== null && before.author === line.author && line.time - before.time < 120_000
      && before.classList.contains("mine") === line.classList.contains("mine"));
  }

  #trim() {
    while (this.list.childElementCount > SHOWN_MESSAGES && atEnd) this.list.firstElementChild.remove();
  }
}

