// Small things that all our pages need.

// An element. Booleans and null are properties or nothing, `on...` listens, everything else is an attribute.
export function make(tag, given = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...inside.filter((part) => part !== null));
  return element;
}

export const $ = (id) => document.getElementById(id);

// What has happened, for those who hear the page.
export const say = (text) => { $("say").textContent = text; };

const THEMES = ["auto", "light", "dark"];

// A button that goes through the themes; which one is kept under `key`.
export function themed(button, key) {
  const show = (name) => {
    const known = THEMES.includes(name) ? name : "auto";
    document.documentElement.dataset.theme = known;
    localStorage.setItem(key, known);
    button.textContent = `Theme: ${known}`;
  };
  button.addEventListener("click", () => show(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]));
  show(localStorage.getItem(key) ?? "auto");
}
