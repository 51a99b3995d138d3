// Pictures that wait for the next message: by the button, from the clipboard, or dropped.

import { $, make, say } from "/shared/make.js";

const LARGE = 300_000; // bytes; larger ones are made smaller, as models see few pixels and this browser keeps little
const SIDE = 1024;

export const waiting = [];

export const image = ({ url, alt }) => make("img", { src: url, alt });

export function drawWaiting() {
  $("waiting").replaceChildren(...waiting.map((picture, n) => {
    const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${picture.alt}` }, "Remove");
    remove.addEventListener("click", () => { waiting.splice(n, 1); drawWaiting(); $("text").focus(); });
    return make("li", {}, image(picture), remove);
  }));
}

// What was waiting, which then waits no more.
export function taken() {
  const pictures = waiting.splice(0);
  drawWaiting();
  return pictures;
}

export async function attach(files) {
  for (const file of files) {
    try {
      waiting.push({ url: await urlOf(file), alt: file.name || "Pasted picture" });
      say(`${file.name || "A picture"} goes with your message.`);
    } catch {
      say(`${file.name || "This"} is no picture that the browser can read.`);
    }
  }
  drawWaiting();
}

async function urlOf(file) {
  const bitmap = await createImageBitmap(file);
  if (file.size <= LARGE && file.type !== "image/avif") return read(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function read(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => done(reader.result));
    reader.addEventListener("error", failed);
    reader.readAsDataURL(file);
  });
}

// Listens; `sees`: whether the model reads pictures now.
export function listen(sees) {
  const given = (event, transfer) => {
    const files = [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!files.length || !sees()) return;
    event.preventDefault();
    attach(files);
  };
  $("attach").addEventListener("click", () => $("picture").click());
  $("picture").addEventListener("change", async () => { await attach($("picture").files); $("picture").value = ""; $("text").focus(); });
  $("text").addEventListener("paste", (event) => given(event, event.clipboardData));
  addEventListener("dragover", (event) => { if (sees() && event.dataTransfer.types.includes("Files")) event.preventDefault(); });
  addEventListener("drop", (event) => given(event, event.dataTransfer));
}
