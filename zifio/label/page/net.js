// Talks to the desk. The token comes with the link (behind #, which no server sees) and stays in this browser.

const TOKEN = "zifio-desk/token";
const WAIT_MS = 15000;

export class Failed extends Error {
  // status 0: the desk was not reached
  constructor(status, message) {
    super(message);
    this.status = status;
  }
  get again() {
    return this.status === 0 || this.status === 401 || this.status === 429 || this.status >= 500;
  }
}

export function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    useToken(found);
    history.replaceState(null, "", location.pathname);
  }
}

export function useToken(token) {
  localStorage.setItem(TOKEN, token.trim());
}

export async function call(path, body, wait = WAIT_MS) {
  const headers = { "Content-Type": "application/json", "X-Desk": "1" };
  const token = localStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", headers, body: JSON.stringify(body ?? {}), signal: AbortSignal.timeout(wait), cache: "no-store",
    });
  } catch {
    throw new Failed(0, "The desk is not reached.");
  }
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const why = typeof said.error === "string" ? said.error : `The desk answers ${answer.status}.`;
  throw new Failed(answer.status, why);
}

export function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
