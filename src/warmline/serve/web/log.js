// The conversation on the screen, and the same in whole sentences for a screen reader.
// Text is only ever set as text: nothing a model or a person writes becomes markup.

import { t } from "./strings.js";

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
  if (who) {
    const label = document.createElement("p");
    label.className = kind === "you" ? "unseen" : "said-who";
    label.textContent = who;
    entry.append(label);
  }
  return entry;
}

export function addYours(text) {
  const entry = item("you", t("talk.you"));
  const said = document.createElement("p");
  said.className = "said-text";
  said.textContent = text;
  entry.append(said);
  log.append(entry);
  scrollTo({ top: document.documentElement.scrollHeight });
}

export function addNotice(text) {
  following(() => {
    const entry = item("notice");
    entry.classList.add("notice");
    entry.textContent = text;
    log.append(entry);
  });
  announce(text);
}

// A reply that grows sentence by sentence.
export class Reply {
  #entry = null;
  #said = null;
  #unspoken = "";

  add(piece) {
    following(() => {
      if (!this.#entry) {
        this.#entry = item("reply", t("talk.name"));
        this.#said = document.createElement("p");
        this.#said.className = "said-text";
        this.#entry.append(this.#said);
        log.append(this.#entry);
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

  end(stopped) {
    this.#speak();
    if (!stopped) return;
    following(() => {
      const note = document.createElement("p");
      note.className = "said-after";
      note.textContent = t("talk.stopped");
      if (this.#entry) {
        this.#entry.append(note);
      } else {
        const entry = item("stopped");
        entry.append(note);
        log.append(entry);
      }
    });
    announce(t("talk.stopped"));
  }
}

export function addTrouble(text, again) {
  following(() => {
    const entry = item("trouble");
    entry.classList.add("notice", "notice-trouble");
    const said = document.createElement("p");
    said.textContent = `${text} ${t("trouble.help")}`;
    const help = document.createElement("a");
    help.href = "/help";
    help.target = "_blank";
    help.textContent = t("help.link");
    said.append(help, ".");
    entry.append(said);
    if (again) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "plain";
      button.textContent = t("talk.again");
      button.addEventListener("click", () => {
        entry.remove();
        again();
      });
      entry.append(button);
    }
    log.append(entry);
  });
  announce(text);
}

export function clearLog() {
  log.replaceChildren();
  live.replaceChildren();
  alarm.textContent = "";
  setStatus(null);
}
