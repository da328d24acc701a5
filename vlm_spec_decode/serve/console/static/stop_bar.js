// Keeps the stop on the part of the page that is seen: above a phone's keyboard, and inside a magnified part.

import { byId } from "./dom.js";

const LOW_PX = 480; // so little height is left above a keyboard: the bar then is the button alone

/** Move the bar from the bottom of the layout, where CSS has it, to the bottom of what is seen. */
function place() {
  const seen = window.visualViewport;
  const layout = document.documentElement;
  const bar = byId("stop-bar");
  const right = layout.clientWidth - seen.width - seen.offsetLeft;
  // What lies under the bar's place: the keyboard on phones that lay it over the page, or what is magnified out.
  const under = layout.clientHeight - seen.height - seen.offsetTop;
  bar.style.bottom = `${Math.max(0, under)}px`;
  bar.style.left = `${Math.max(0, seen.offsetLeft)}px`;
  bar.style.right = `${Math.max(0, right)}px`;
  layout.classList.toggle("low", seen.height < LOW_PX);
}

export function keepStopInSight() {
  if (!window.visualViewport) return;
  for (const name of ["resize", "scroll"]) window.visualViewport.addEventListener(name, place);
  addEventListener("scroll", place, { passive: true });
  place();
}
