// Pictures: those that wait for the next message, by the button, from the clipboard, or dropped; and how all of them look.

import { $, make, say } from "/shared/make.js";

const LARGE = 300_000; // bytes; larger ones are made smaller, as models see few pixels and this browser keeps little
const SIDE = 1024;
const FEW = 128; // pixels a side; a picture of so few is shown larger, each of its pixels a square
const SHOWN = 160;
const TALL = 256;

export const waiting = [];

// A picture keeps its size once that is known, so that nothing moves where it is shown again.
export function image(picture) {
  const shown = make("img", { src: picture.url, alt: picture.alt });
  const sized = () => {
    const [width, height] = picture.size, side = Math.max(width, height), isSmall = side <= FEW;
    const scale = isSmall ? Math.max(1, Math.floor(SHOWN / side)) : Math.min(1, TALL / height);
    shown.classList.toggle("small", isSmall);
    [shown.width, shown.height] = [width, height].map((pixels) => Math.max(1, Math.round(pixels * scale)));
  };
  if (picture.size) sized();
  else shown.addEventListener("load", () => { picture.size = [shown.naturalWidth, shown.naturalHeight]; sized(); });
  return shown;
}

// A drawing and what can be done with it; `use` is absent where no model would read it.
export function drawing(picture, number, name, use) {
  const file = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "drawing"}-${number}.png`;
  const link = make("a", { href: picture.url, download: file, class: "button quiet", "aria-label": `Save drawing ${number}` }, "Save");
  const again = use && make("button", { type: "button", class: "quiet", "aria-label": `Ask about drawing ${number}`, onclick: () => use(picture) }, "Ask about");
  return make("figure", {}, image(picture), make("figcaption", { class: "does" }, link, again ?? null));
}

// Puts a picture beside the next message.
export function wait(picture) {
  waiting.push(picture);
  drawWaiting();
  say(`${picture.alt} goes with your message.`);
  $("text").focus();
}

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

async function attach(files) {
  const told = [];
  say("Reading."); // a large one takes seconds
  for (const file of files) {
    try {
      waiting.push({ url: await urlOf(file), alt: file.name || "Pasted picture" });
      told.push(`${file.name || "A picture"} goes with your message.`);
    } catch {
      told.push(`${file.name || "This"} is no picture that the browser can read.`);
    }
  }
  say(told.join(" "));
  drawWaiting();
}

async function urlOf(file) {
  const bitmap = await createImageBitmap(file);
  const side = Math.max(bitmap.width, bitmap.height), scale = Math.min(1, SIDE / side);
  if (file.size <= LARGE && scale === 1 && file.type !== "image/avif") return read(file);
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
  $("attach").addEventListener("click", () => $("picture").click());
  $("picture").addEventListener("change", async () => { await attach($("picture").files); $("picture").value = ""; $("text").focus(); });
  $("text").addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (!files.length || !sees()) return;
    event.preventDefault();
    attach(files);
  });
  // A browser would leave the page for what is dropped onto it.
  const isOurs = (event) => event.dataTransfer?.types.includes("Files") && event.target.type !== "file";
  addEventListener("dragover", (event) => { if (isOurs(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    if (sees()) attach(event.dataTransfer.files);
    else say("This model reads no pictures.");
  });
}
