// The server's side of a conversation. Knows nothing of what is on the screen.

export class Refused extends Error {
  constructor(status, code) {
    super(code);
    this.status = status;
    this.code = code;
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
  const { code } = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, code ?? "fault");
}

const post = (body, more = {}) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  ...more,
});

export async function openConversation(country) {
  return (await (await ask("/api/conversations", post({ country }))).json()).id;
}

export function forgetConversation(id) {
  // `keepalive` lets the request outlive the page.
  return fetch(`/api/conversations/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

export async function resourcesFor(country) {
  return (await ask(`/api/resources/${country || "ZZ"}`)).json();
}

// Yields {event, data} of one turn, in the server's order. Ends early when `signal` aborts.
export async function* sendMessage(id, text, country, signal) {
  const answer = await ask(`/api/conversations/${id}/messages`, post({ text, country }, { signal }));
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
