// Conversations in this browser. One that grows too large for it loses what can be asked for again first: its tokens.

import { Talk } from "./talk.js";

const PLACE = "zifio-chat/talk/", LAST = "zifio-chat/last";

export const placeOf = (talk) => PLACE + talk.id;

// Whether it is kept; false where the browser has no room.
export function keep(talk) {
  if (!talk.turns.length) return true;
  const bare = (name, value) => (name === "tokens" ? { reasoning: [], content: [] } : value);
  for (const replacer of [undefined, bare]) {
    try {
      localStorage.setItem(placeOf(talk), JSON.stringify(talk, replacer));
      localStorage.setItem(LAST, talk.id);
      return true;
    } catch { /* full: without tokens, then not at all */ }
  }
  return false;
}

export function fetched(id) {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE + id));
    return kept && new Talk(kept);
  } catch {
    return null;
  }
}

export const last = () => fetched(localStorage.getItem(LAST));
export const forget = (talk) => localStorage.removeItem(placeOf(talk));

export function all() {
  const ids = Object.keys(localStorage).filter((name) => name.startsWith(PLACE)).map((name) => name.slice(PLACE.length));
  return ids.map(fetched).filter(Boolean).sort((a, b) => b.at - a.at);
}

export function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
