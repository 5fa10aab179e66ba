// Deletion: the question, the call, the receipt.

import { byId, element, say, showFacts, showFailure } from "./parts.js";
import { ask } from "./server.js";

let subject = null;
let receipt = null;

// Calls `done` with what was erased once the receipt is closed.
export function prepareErasing(done) {
  byId("erase-yes").addEventListener("click", async () => {
    const erased = subject;
    byId("erase-yes").disabled = true;
    try {
      receipt = await ask("/api/erase", erased.asked);
      byId("erase").close();
      done(erased, showReceipt);
    } catch (error) {
      byId("erase").close();
      showFailure(byId("failure"), error);
    } finally {
      byId("erase-yes").disabled = false;
    }
  });
  byId("receipt-save").addEventListener("click", save);
}

export const askToEraseFile = (hit) =>
  open({ asked: { id: hit.id }, gone: (other) => other.path === hit.path }, hit.path);

export const askToEraseAlbum = (album) =>
  open({ asked: { album }, gone: (other) => other.album === album }, `Every picture of the album “${album}”`);

function open(what, words) {
  subject = what;
  byId("erase-subject").textContent = words;
  byId("erase").showModal();
}

function showReceipt() {
  byId("receipt-text").textContent =
    `${receipt.files} ${receipt.files === 1 ? "file" : "files"} and ${receipt.rows} ` +
    `${receipt.rows === 1 ? "row" : "rows"} are gone. The store was searched for what they held: ` +
    `${receipt.residues} of ${receipt.patterns} pieces were found.`;
  showFacts(byId("receipt-facts"), [
    ["Receipt", receipt.id],
    ["Time", new Date(receipt.erased_at * 1000).toISOString()],
    ["Scope", receipt.scope],
    ["SHA-256 of the subject", receipt.subject_sha256],
    ["Bytes searched", receipt.bytes_searched],
    ["Store written anew", receipt.rewritten ? "yes" : "no"],
  ]);
  byId("receipt").showModal();
  say(byId("said"), `Deleted: ${receipt.files} files.`);
}

function save() {
  const file = new Blob([`${JSON.stringify(receipt, null, 2)}\n`], { type: "application/json" });
  const address = URL.createObjectURL(file);
  element("a", { href: address, download: `pocketlens-receipt-${receipt.id}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
