// The server's side of a conversation. Knows nothing of what is on the screen.

export class Refused extends Error {
  // `told` is what the server said with it: notices and safety of a turn that got no reply.
  constructor(status, code, told = {}) {
    super(code);
    this.status = status;
    this.code = code;
    this.told = told;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.code ?? "fault", told);
}

const send = (method, body, more = {}) => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  ...more,
});

const all = "/api/conversations";
const one = (id, part = "") => `${all}/${encodeURIComponent(id)}${part}`;

export async function openConversation(country) {
  return (await (await ask(all, send("POST", { country }))).json()).id;
}

export const ownConversations = async () => (await (await ask(all)).json()).conversations;
export const readConversation = async (id) => (await ask(one(id))).json();
export const rename = (id, title) => ask(one(id, "/title"), send("PUT", { title }));
export const consent = (id, training) => ask(one(id, "/consent"), send("PUT", { training }));
export const judge = (id, place, verdict) => ask(one(id, "/verdict"), send("PUT", { place, verdict }));
export const forgetAll = () => ask(all, { method: "DELETE" });
export const exportAddress = (id, form, language) => one(id, `/export?form=${form}&language=${language}`);

export function forgetConversation(id) {
  // `keepalive` lets the request outlive the page.
  return ask(one(id), { method: "DELETE", keepalive: true });
}

export async function resourcesFor(country) {
  return (await ask(`/api/resources/${country || "ZZ"}`)).json();
}

// What a message is known by, so that the server answers it once however often it is sent.
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(36)).join("");

// Yields {event, data} of one turn, in the server's order, after {event: "place"}. Ends early when `signal` aborts.
export async function* sendMessage(id, message, key, signal) {
  const options = send("POST", message, { signal });
  options.headers["Idempotency-Key"] = key;
  const answer = await ask(one(id, "/messages"), options);
  yield { event: "place", data: Number(answer.headers.get("Warmline-Place")) };
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "unreachable");
    }
    rest += decoder.decode(chunk.value ?? new Uint8Array(), { stream: !chunk.done });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (fields.event) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
    if (chunk.done) return;
  }
}
