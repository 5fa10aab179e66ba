// Asks the server. Every failure is an Error whose message is the typed error's own words.

export class Refused extends Error {
  constructor(error) {
    super(`${error.what}: expected ${error.expected}; found ${error.found}. ${error.remedy}`);
    this.name = error.error;
  }
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("The gallery does not answer: it was ended. Start `pocketlens gallery` again.");
  }
  const body = await response.json();
  if (!response.ok) throw new Refused(body);
  return body;
}

export const status = () => answer(fetch("/api/status"));

export const ask = (path, body = {}) =>
  answer(fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));

export const searchPicture = (asked, picture) =>
  answer(
    fetch(`/api/search/picture?${new URLSearchParams({ asked: JSON.stringify(asked) })}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: picture,
    }),
  );
