// The model of the store: which one answers, and the way to another one and back.

import { byId, element, say, showFacts, showFailure } from "./parts.js";
import { Refused, ask, status } from "./server.js";

const POLL_MS = 700;
let timer = 0;
let told = "";
let changed;

export function prepareModel(onChange) {
  changed = onChange;
  byId("open-model").addEventListener("click", async () => {
    told = "";
    byId("model").showModal();
    await refresh();
  });
  byId("model").addEventListener("close", () => clearTimeout(timer));
}

async function refresh() {
  try {
    show(await status());
  } catch (error) {
    showFailure(byId("model-failure"), error);
  }
}

function show(state) {
  const upgrade = state.upgrade;
  clearTimeout(timer);
  changed(state);
  showFacts(byId("model-facts"), [
    ["Answers now", upgrade.active],
    ["Being filled", upgrade.shadow],
    ["Before", upgrade.previous],
    ["Files", upgrade.files],
    ["Looked at", upgrade.shadow ? upgrade.done : null],
    ["Skipped: gone or refused", upgrade.shadow ? upgrade.skipped : null],
  ]);
  byId("model-progress").hidden = !upgrade.shadow;
  byId("model-bar").max = Math.max(upgrade.files, 1);
  byId("model-bar").value = upgrade.done + upgrade.skipped;
  showFailure(byId("model-failure"), upgrade.error && new Refused(upgrade.error));
  tell(upgrade);
  showActions(upgrade);
  if (upgrade.running && byId("model").open) timer = setTimeout(refresh, POLL_MS);
}

function tell(upgrade) {
  const tenth = Math.floor((10 * (upgrade.done + upgrade.skipped)) / Math.max(upgrade.files, 1)) * 10;
  let text = "No upgrade is under way.";
  if (upgrade.running) text = `The upgrade is under way: ${tenth} %. Searches go on with ${upgrade.active}.`;
  else if (upgrade.filled) text = `${upgrade.shadow} is ready to answer.`;
  else if (upgrade.shadow) text = "The upgrade has stopped. It goes on from here.";
  if (text !== told) say(byId("model-said"), text); // spoken when a tenth is done, not at every look
  told = text;
}

function showActions(upgrade) {
  const focused = document.activeElement && document.activeElement.dataset.path;
  const { target, shadow, previous, running, filled } = upgrade;
  const startable = target && !running && !filled && target !== upgrade.active && target !== previous && (!shadow || shadow === target);
  const offered = [
    [startable, shadow ? `Go on to ${target}` : `Upgrade to ${target}`, "start", "main"],
    [running, "Stop for now", "stop", ""],
    [filled, `Switch to ${shadow}`, "switch", "main"],
    [target && shadow === target, "Give the upgrade up", "cancel", "danger"],
    [previous && !shadow && upgrade.can_return, `Go back to ${previous}`, "rollback", ""],
    [previous && !shadow, `Remove the rows of ${previous}`, "finish", "danger"],
  ].filter(([possible]) => possible);
  const wanted = offered.map(([, text, path]) => path + text).join();
  const box = byId("model-actions");
  if (box.dataset.shown === wanted) return; // the button that has the focus keeps it
  box.dataset.shown = wanted;
  box.replaceChildren(...offered.map(([, text, path, className]) => button(text, path, className)));
  if (focused) (box.querySelector("button") || byId("model").querySelector("[data-close]")).focus();
}

function button(text, path, className) {
  const node = element("button", { type: "button", className }, text);
  node.dataset.path = path;
  node.addEventListener("click", async () => {
    try {
      show(await ask(`/api/upgrade/${path}`));
    } catch (error) {
      await refresh();
      showFailure(byId("model-failure"), error);
    }
  });
  return node;
}
