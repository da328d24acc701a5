// Small helpers around the document.

export const byId = (id) => document.getElementById(id);

/** Make an element with a class, a text and children. */
export function make(tag, { cls = "", text = null, children = [], ...rest } = {}) {
  const element = document.createElement(tag);
  if (cls) element.className = cls;
  if (text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(rest)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Put children in the place of what an element holds. */
export function fill(element, children) {
  element.replaceChildren(...children);
}

/** Say something to screen readers, once. */
export function announce(text) {
  byId("announce").textContent = text;
}

/** A number with digits and unit, or a word where it is not known. */
export function told(value, digits, unit = "") {
  return value === null || value === undefined ? "unknown" : `${value.toFixed(digits)}${unit ? " " + unit : ""}`;
}

/** A colour of the theme, as a string that a canvas takes. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Seconds as minutes and seconds. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
