// The conversation on the screen, and the same in whole sentences for a screen reader.
// Text is only ever set as text: nothing a model or a person writes becomes markup.

import { saying, t } from "./strings.js";

const log = document.getElementById("log");
const live = document.getElementById("said");
const alarm = document.getElementById("alert");
const status = document.getElementById("status");

const bar = document.querySelector(".top");
const NEAR = 160;
const AIR = 16;

// What the bar and the field cover is no place for something that gets the focus.
const composer = document.getElementById("composer");
function keepClear() {
  const covers = (element) => (getComputedStyle(element).position === "sticky" ? element.offsetHeight : 0);
  document.documentElement.style.scrollPaddingBlock = `${covers(bar) + AIR}px ${covers(composer) + AIR}px`;
}
const watch = new ResizeObserver(keepClear);
watch.observe(bar);
watch.observe(composer);

// Follow what is added, but never past the beginning of the newest entry: one reads from its first word on.
export function follow() {
  const end = document.documentElement.scrollHeight;
  const newest = log.lastElementChild;
  const start = newest ? newest.getBoundingClientRect().top + scrollY - bar.offsetHeight - AIR : end;
  scrollTo({ top: Math.min(end - innerHeight, Math.max(start, 0)) });
}

function following(change) {
  const root = document.documentElement;
  const near = root.scrollHeight - scrollY - innerHeight < NEAR;
  change();
  if (near) follow();
}

export function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  live.append(line);
  while (live.children.length > 40) live.firstElementChild.remove();
}

export function alarmWith(text) {
  alarm.textContent = text;
}

export function setStatus(text) {
  following(() => {
    status.hidden = !text;
    status.textContent = text ?? "";
  });
}

function item(kind, who) {
  const entry = document.createElement("li");
  entry.className = `said said-${kind}`;
  if (who) entry.append(saying("p", kind === "you" ? "unseen" : "said-who", who));
  return entry;
}

function text(words) {
  const said = document.createElement("p");
  said.className = "said-text";
  said.textContent = words;
  return said;
}

export function addYours(words) {
  const entry = item("you", "talk.you");
  entry.append(text(words));
  log.append(entry);
  scrollTo({ top: document.documentElement.scrollHeight });
  return entry;
}

export function addNotice(words, lang) {
  following(() => {
    const entry = item("notice");
    entry.classList.add("notice");
    entry.textContent = words;
    if (lang) entry.lang = lang;
    log.append(entry);
  });
  announce(words);
}

// A reply that was made earlier.
export function addReply(words) {
  const entry = item("reply", "talk.name");
  entry.append(text(words));
  log.append(entry);
  return entry;
}

// A reply that grows sentence by sentence. `lang` is set when it is known not to be the page's.
export class Reply {
  entry = null;
  lang = null;
  #said = null;
  #unspoken = "";

  add(piece) {
    following(() => {
      if (!this.entry) {
        this.entry = addReply("");
        this.#said = this.entry.querySelector(".said-text");
        if (this.lang) this.#said.lang = this.lang;
      }
      const part = document.createElement("span");
      part.textContent = this.#said.childElementCount ? piece : piece.trimStart();
      this.#said.append(part);
    });
    this.#unspoken += piece;
    // Whole sentences only: a listener cannot follow a voice that starts anew at each word.
    const end = this.#unspoken.search(/[.!?…:)"”’]\s*$/);
    if (end >= 0) this.#speak();
  }

  #speak() {
    if (this.#unspoken.trim()) announce(this.#unspoken.trim());
    this.#unspoken = "";
  }

  // What stands on the screen for the reply, null if nothing does.
  end(stopped) {
    this.#speak();
    if (!stopped) return this.entry;
    following(() => {
      if (!this.entry) {
        this.entry = item("stopped");
        log.append(this.entry);
      }
      this.entry.append(saying("p", "said-after", "talk.stopped"));
    });
    announce(t("talk.stopped"));
    return this.entry;
  }
}

// The small choices under an entry: edit, try again, rate.
export function offer(entry, ...choices) {
  following(() => {
    let ways = entry.querySelector(".said-ways");
    if (!ways) {
      ways = document.createElement("div");
      ways.className = "said-ways";
      entry.append(ways);
    }
    ways.append(...choices);
  });
}

export function choice(key, chosen) {
  const button = saying("button", "quiet once", key);
  button.addEventListener("click", chosen);
  return button;
}

// Editing and trying again are for the last message alone.
export function withdrawOffers() {
  for (const button of log.querySelectorAll(".once")) {
    const ways = button.parentElement;
    button.remove();
    if (!ways.childElementCount) ways.remove();
  }
}

// Takes away what follows an entry, but for notices: what this is, is told once.
export function dropAfter(entry, itself = false) {
  let next = entry.nextElementSibling;
  while (next) {
    const following = next.nextElementSibling;
    if (!next.classList.contains("said-notice")) next.remove();
    next = following;
  }
  if (itself) entry.remove();
}

export function addTrouble(key, again) {
  following(() => {
    const entry = item("trouble");
    entry.classList.add("notice", "notice-trouble");
    const said = document.createElement("p");
    const help = saying("a", "", "help.link");
    help.href = document.getElementById("help").href;
    help.target = "_blank";
    said.append(saying("span", "", key), " ", saying("span", "", "trouble.help"), help, ".");
    const button = saying("button", "plain", "talk.again");
    button.addEventListener("click", () => {
      entry.remove();
      again();
    });
    entry.append(said, button);
    log.append(entry);
  });
  announce(t(key));
}

export function clearLog() {
  log.replaceChildren();
  live.replaceChildren();
  alarm.textContent = "";
  setStatus(null);
}

