// The grid of answers: cards, arrow keys, and the dialog with one large picture.

import { byId, day, describe, element, percent, picture, seconds, showFacts } from "./parts.js";

const list = byId("results");
let actions;
let opened = null;

export function prepareResults(given) {
  actions = given;
  list.addEventListener("keydown", onKey);
  list.addEventListener("focusin", (event) => rove(event.target.closest(".card")));
  byId("details-like").addEventListener("click", () => { byId("details").close(); actions.like(opened); });
  byId("details-erase").addEventListener("click", () => { byId("details").close(); actions.erase(opened); });
}

export function showResults(hits) {
  list.replaceChildren(...hits.map(card));
  byId("keys").hidden = hits.length === 0;
  rove(list.firstElementChild);
  suggest("folders", hits.map((hit) => hit.folder));
  suggest("albums", hits.map((hit) => hit.album));
}

// Takes the cards of a deleted file away and puts the focus where it was.
export function removeResults(gone) {
  const cards = [...list.children];
  const first = cards.findIndex((node) => gone(node.hit));
  for (const node of cards) if (gone(node.hit)) node.remove();
  const next = list.children[Math.min(Math.max(first, 0), list.children.length - 1)];
  byId("keys").hidden = !next;
  if (next) {
    rove(next);
    next.querySelector(".open").focus();
  } else {
    byId("results-heading").focus();
  }
  return list.children.length;
}

function suggest(id, values) {
  const known = new Set([...byId(id).options].map((option) => option.value));
  for (const value of values) {
    if (value && !known.has(value)) {
      known.add(value);
      byId(id).append(element("option", { value }));
    }
  }
}

function card(hit) {
  const open = element("button", { type: "button", className: "open" }, picture(hit, "thumbnails", describe(hit)));
  open.setAttribute("aria-label", `Open ${describe(hit)}`);
  open.setAttribute("aria-haspopup", "dialog");
  open.addEventListener("click", () => showDetails(hit));
  const words = element("div", { className: "words" });
  if (hit.caption) words.append(element("p", { className: "caption" }, hit.caption));
  if (hit.confidence !== null) words.append(sure(hit.confidence));
  const at = hit.modality === "video" ? ` · ${seconds(hit.at_ms)}` : "";
  words.append(element("p", { className: "name" }, `${hit.name}${at}`));
  const like = action("More like this", `More like ${describe(hit)}`, () => actions.like(hit));
  const erase = action("Delete…", `Delete ${hit.name}…`, () => actions.erase(hit));
  const node = element("li", { className: "card" }, open, words, element("div", { className: "row" }, like, erase));
  node.hit = hit;
  return node;
}

function sure(confidence) {
  const meter = element("meter", { min: 0, max: 1, value: confidence });
  meter.setAttribute("aria-label", `Confidence of the caption: ${percent(confidence)}`);
  return element("p", { className: "sure" }, meter, `${percent(confidence)} sure`);
}

function action(text, label, act) {
  const button = element("button", { type: "button" }, text);
  button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

function showDetails(hit) {
  opened = hit;
  byId("details-name").textContent = hit.name;
  byId("details-picture").replaceChildren(picture(hit, "previews", describe(hit)));
  byId("details-caption").textContent = hit.caption || "";
  byId("details-caption").hidden = !hit.caption;
  showFacts(byId("details-facts"), [
    ["Confidence", hit.confidence === null ? null : percent(hit.confidence)],
    ["Similarity", hit.score.toFixed(3)],
    ["Folder", hit.folder],
    ["Album", hit.album],
    ["Taken", hit.taken_at === null ? null : day(hit.taken_at)],
    ["In the video", hit.modality === "video" ? `${seconds(hit.at_ms)} to ${seconds(hit.until_ms)}` : null],
  ]);
  byId("details").showModal();
}

// Only one card is in the tab order at a time: Tab leaves the grid instead of walking through all of it.
function rove(current) {
  for (const node of list.children) {
    for (const button of node.querySelectorAll("button")) button.tabIndex = node === current ? 0 : -1;
  }
}

function onKey(event) {
  const current = event.target.closest(".card");
  const cards = [...list.children];
  const at = cards.indexOf(current);
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Delete") {
    event.preventDefault();
    actions.erase(current.hit);
    return;
  }
  const columns = cards.filter((node) => node.offsetTop === cards[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: cards.length - 1 - at };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = cards[Math.min(Math.max(at + steps[event.key], 0), cards.length - 1)];
  rove(next);
  next.querySelector(".open").focus();
}
