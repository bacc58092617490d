// Keeps the help page and the neutral one in the browser, for when the server cannot be reached. See worker.js.

const FILES = ["/static/page.css", "/static/measures.css", "/static/icon.svg", "/static/plain.svg", "/static/leave.js"];

// The one address of a script that this page makes: CSP lets no other policy be created.
const address = { createScriptURL: () => "/worker.js" };
const policy = self.trustedTypes?.createPolicy("worker", address) ?? address;

export async function keepHelp(help, neutral) {
  // Browsers offer both only on https and on the machine itself; elsewhere the page does without.
  if (!("caches" in self && "serviceWorker" in navigator)) return;
  try {
    const kept = await caches.open("help");
    for (const [under, from] of [["/help", help], ["/measures", neutral], ...FILES.map((file) => [file, file])]) {
      const answer = await fetch(from);
      if (answer.ok) await kept.put(under, answer);
    }
    await navigator.serviceWorker.register(policy.createScriptURL("/worker.js"));
  } catch {
    // Not reachable just now, or not allowed by the browser: the copy from before stays.
  }
}
