// What is to be sent, kept in this browser until the desk has acknowledged it: a lost connection, a closed tab or a crash
// loses nothing. Every entry has a key, so that an entry sent twice is written once. Entries go in order.

import { call } from "./net.js";

const LONGEST_WAIT_MS = 15000;

export class Outbox {
  // told(): whenever the number of waiting entries or the connection changes. refused(entry, error): it will never be taken.
  constructor(who, told, refused) {
    this.prefix = `zifio-desk/${who}/outbox/`;
    this.told = told;
    this.refused = refused;
    this.online = true;
    this.waiters = new Map();
    this.wait = 0;
    this.running = null;
    this.last = Math.max(0, ...this.names().map((name) => Number(name.slice(this.prefix.length))));
    addEventListener("online", () => this.flush());
    addEventListener("storage", () => this.told());
    this.flush();
  }

  names() {
    return Object.keys(localStorage).filter((name) => name.startsWith(this.prefix)).sort();
  }

  get waiting() {
    return this.names().length;
  }

  entries() {
    return this.names().map((name) => JSON.parse(localStorage.getItem(name))).filter(Boolean);
  }

  // Resolves with the desk's answer. Whoever waits for it must be ready to wait for ever.
  put(path, body) {
    this.last = Math.max(Date.now() * 1000, this.last + 1);
    const name = this.prefix + String(this.last).padStart(20, "0");
    localStorage.setItem(name, JSON.stringify({ path, body }));
    const answer = new Promise((resolve) => this.waiters.set(name, resolve));
    this.told();
    this.flush();
    return answer;
  }

  // Ends when nothing waits any more, or the desk cannot be reached.
  flush() {
    clearTimeout(this.timer);
    this.running ??= this.sendAll().finally(() => {
      this.running = null;
      this.told();
    });
    return this.running;
  }

  async sendAll() {
    for (let name; (name = this.names()[0]); ) {
      if (!(await this.send(name))) return;
    }
  }

  async send(name) {
    const entry = JSON.parse(localStorage.getItem(name) ?? "null");
    if (!entry) return true; // another tab has sent it
    try {
      const answer = await call(entry.path, entry.body);
      this.waiters.get(name)?.(answer);
    } catch (error) {
      if (error.again) {
        this.online = error.status !== 0;
        this.wait = Math.min(LONGEST_WAIT_MS, Math.max(500, this.wait * 2));
        this.timer = setTimeout(() => this.flush(), this.wait);
        return false;
      }
      this.refused(entry, error);
    }
    localStorage.removeItem(name);
    this.waiters.delete(name);
    this.online = true;
    this.wait = 0;
    return true;
  }
}
