// Small pieces of the page, made of nodes: no text ever becomes markup.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export function showFacts(list, facts) {
  const shown = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...shown.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}

export const percent = (share) => `${Math.round(share * 100)} %`;

export const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

export function seconds(milliseconds) {
  const whole = Math.floor(milliseconds / 1000);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export function describe(hit) {
  const at = hit.modality === "video" ? ` at ${seconds(hit.at_ms)}` : "";
  return (hit.caption || hit.name) + at;
}

// A picture, or words in its place where the file is gone or has no picture.
export function picture(hit, kind, alt) {
  const image = element("img", { src: `/${kind}/${hit.id}`, alt, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    const why = hit.modality === "image" ? "This file cannot be shown" : `${hit.modality}: no picture`;
    image.replaceWith(element("span", { className: "missing" }, `${why}: ${alt}`));
  });
  return image;
}

// Screen readers speak a live region when its text changes; the same text twice needs a change in between.
export function say(region, text) {
  region.textContent = "";
  requestAnimationFrame(() => { region.textContent = text; });
}

export function showFailure(region, error) {
  region.hidden = !error;
  region.textContent = error ? error.message : "";
  if (error) region.scrollIntoView({ block: "nearest" });
}

for (const dialog of document.querySelectorAll("dialog")) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
}
