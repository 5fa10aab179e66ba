// Ties the page together: the search form, its picture, and what follows an answer.

import { askToEraseAlbum, askToEraseFile, prepareErasing } from "./erasing.js";
import { prepareModel } from "./model.js";
import { byId, describe, say, showFailure } from "./parts.js";
import { prepareResults, removeResults, showResults } from "./results.js";
import { ask, searchPicture, status } from "./server.js";

const form = byId("search");
let chosen = null;
let largest = Infinity;
let asking = 0;

function narrowed() {
  const value = (id) => byId(id).value.trim();
  const start = (id) => (value(id) ? Date.parse(`${value(id)}T00:00:00Z`) / 1000 : null);
  const until = start("until");
  return {
    k: Number(value("k")),
    folder: byId("folder").value,
    album: byId("album").value,
    taken_from: start("from"),
    taken_until: until === null ? null : until + 86400, // the day itself counts
  };
}

async function show(words, answer) {
  const mine = ++asking;
  showFailure(byId("failure"), null);
  byId("results").setAttribute("aria-busy", "true");
  say(byId("said"), "Searching…");
  try {
    const hits = await answer;
    if (mine !== asking) return; // somebody has asked again meanwhile
    showResults(hits);
    say(byId("said"), hits.length ? `${hits.length} ${hits.length === 1 ? "picture" : "pictures"} ${words}.` : `Nothing found ${words}.`);
  } catch (error) {
    if (mine !== asking) return;
    say(byId("said"), "");
    showFailure(byId("failure"), error);
  } finally {
    if (mine === asking) byId("results").removeAttribute("aria-busy");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = { ...narrowed(), text: byId("text").value, unlike: byId("unlike").value, hybrid: byId("hybrid").checked };
  if (chosen && chosen.size > largest) {
    const error = new Error(`The picture: expected at most ${largest} bytes; found ${chosen.size} bytes. Take a smaller one.`);
    showFailure(byId("failure"), error);
    return;
  }
  const words = asked.text.trim() ? `for “${asked.text.trim()}”` : "";
  if (chosen) show(`${words} like the given picture`.trim(), searchPicture(asked, chosen));
  else show(words, ask("/api/search", asked));
});

form.addEventListener("reset", () => choose(null));

function choose(file) {
  const image = byId("chosen-image");
  if (image.src) URL.revokeObjectURL(image.src);
  chosen = file;
  byId("chosen").hidden = !file;
  if (file) image.src = URL.createObjectURL(file);
  else {
    image.removeAttribute("src");
    byId("picture").value = "";
  }
}

// What the browser cannot draw, the server may still read.
byId("chosen-image").addEventListener("error", (event) => { event.target.alt = chosen ? chosen.name : ""; });
byId("picture").addEventListener("change", () => {
  choose(byId("picture").files[0] || null);
  if (chosen) form.requestSubmit();
});
byId("remove-picture").addEventListener("click", () => { choose(null); byId("picture").focus(); });

function take(transfer) {
  const file = [...transfer.files][0];
  if (!file) return;
  choose(file);
  form.requestSubmit();
}
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer);
});
document.addEventListener("paste", (event) => take(event.clipboardData));

byId("erase-album").addEventListener("click", () => {
  const album = byId("album").value;
  if (album) return askToEraseAlbum(album);
  byId("album").focus();
  showFailure(byId("failure"), new Error("Deleting an album: name it first, in the field Album."));
});

prepareResults({
  like: (hit) => {
    show(`like ${describe(hit)}`, ask("/api/like", { ...narrowed(), id: hit.id }));
    byId("results-heading").focus();
  },
  erase: askToEraseFile,
});
prepareErasing(async (erased, showReceipt) => {
  removeResults(erased.gone);
  showReceipt();
  await refresh();
});

function summarise(state) {
  largest = state.max_picture_bytes;
  const tenant = state.tenant ? ` · ${state.tenant}` : "";
  const damaged = state.damaged ? ` · ${state.damaged} damaged: run \`pocketlens store repair\`` : "";
  byId("summary").textContent = `${state.rows} indexed · ${state.model_version}${tenant}${damaged}`;
}
async function refresh() {
  try {
    summarise(await status());
  } catch (error) {
    showFailure(byId("failure"), error);
  }
}
prepareModel(summarise);
await refresh();
