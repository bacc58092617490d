// When the server cannot be reached: the help page from the browser's own copy, in place of the page too.
// Sees no conversation: only the pages and what they load pass through here.

const PAGES = { "/": "/help", "/help": "/help", "/measures": "/measures" };
const PATIENCE_MS = 8000;

addEventListener("install", (event) => {
  // What a page sends while it is being left must not wait for this worker to wake.
  event.addRoutes?.({ condition: { urlPattern: "/api/*" }, source: "network" });
  skipWaiting();
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== location.origin) return;
  const page = request.mode === "navigate" ? PAGES[pathname] : undefined;
  if (page) event.respondWith(visit(request, page));
  else if (pathname.startsWith("/static/")) event.respondWith(load(request, pathname));
});

async function copy(path) {
  return (await caches.open("help")).match(path);
}

async function visit(request, path) {
  const late = new Promise((_, refuse) => setTimeout(refuse, PATIENCE_MS));
  try {
    const answer = await Promise.race([fetch(request), late]);
    if (answer.status < 500) return answer;
  } catch {
    // Below.
  }
  const kept = await copy(path);
  if (!kept) return fetch(request);
  const page = (await kept.text()).replace('id="unreachable" hidden', 'id="unreachable"');
  return new Response(page, { headers: kept.headers });
}

async function load(request, path) {
  try {
    return await fetch(request);
  } catch (error) {
    const kept = await copy(path);
    if (kept) return kept;
    throw error;
  }
}
