// Texts with formulas: $...$, $$...$$, \(...\), \[...\]. Everything becomes text nodes, or what KaTeX builds; nothing that a
// model wrote is ever read as HTML.

// A single $ is pandoc's: no backslash before, no space just within, no digit behind. "$20$" is a formula, "$5 and $7" none.
export const FORMULA = /\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|(?<!\\)\$(?!\s)((?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)/g;

// Formulas wider than their place scroll, and can be reached by keyboard to do so.
export function fit(element) {
  for (const formula of element.querySelectorAll(".formula")) {
    formula.classList.remove("wide");
    const end = formula.parentElement.getBoundingClientRect().right + 1;
    const wide = [...formula.querySelectorAll(".katex-base")].some((part) => part.getBoundingClientRect().right > end);
    formula.classList.toggle("wide", wide);
    if (wide) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  }
}

export function fill(element, text) {
  let end = 0;
  for (const found of text.matchAll(FORMULA)) {
    element.append(text.slice(end, found.index), formula(found));
    end = found.index + found[0].length;
  }
  element.append(text.slice(end));
  return element;
}

// What FORMULA found, drawn.
export function formula(found) {
  const shown = found[1] ?? found[2];
  const place = document.createElement("span");
  place.className = "formula";
  try {
    katex.render(shown ?? found[3] ?? found[4], place, {
      displayMode: shown !== undefined, throwOnError: true, trust: false, maxSize: 20, maxExpand: 500, strict: "ignore",
    });
  } catch {
    place.textContent = found[0]; // as it was written, rather than not at all
    place.className = "broken";
  }
  return place;
}
