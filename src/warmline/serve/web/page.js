// The page: from the first screen into a conversation and out of it. Keeps nothing in the browser's storage.

import { Refused, forgetConversation, openConversation, sendMessage } from "./api.js";
import { addNotice, addTrouble, addYours, alarmWith, announce, clearLog, follow, Reply, setStatus } from "./log.js";
import { country, openPeople, setLevel, setTalking } from "./people.js";
import { loadStrings, t } from "./strings.js";

const MOST_CHARACTERS = 8000;

const first = document.getElementById("first");
const talk = document.getElementById("talk");
const about = document.getElementById("about");
const facts = document.getElementById("facts");
const composer = document.getElementById("composer");
const words = document.getElementById("words");
const note = document.getElementById("composer-note");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const help = document.getElementById("help");
const touch = matchMedia("(hover: none)");

let id = null;
let replying = null;

function begin() {
  if (!talk.hidden) return;
  first.hidden = true;
  talk.hidden = false;
  about.append(facts);
  setTalking(true);
}

function startAgain() {
  replying?.abort();
  replying = null;
  if (id) forgetConversation(id);
  id = null;
  clearLog();
  words.value = "";
  fit();
  first.append(facts);
  about.open = false;
  first.hidden = false;
  talk.hidden = true;
  setTalking(false);
  setReplying(null);
  scrollTo({ top: 0 });
}

function setReplying(now) {
  replying = now;
  const hadFocus = [send, stop].includes(document.activeElement);
  send.hidden = Boolean(now);
  stop.hidden = !now;
  if (hadFocus) words.focus();
}

async function* events(text, signal) {
  id ??= await openConversation(country());
  try {
    yield* sendMessage(id, text, country(), signal);
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
    addNotice(t("trouble.gone"));
    id = await openConversation(country());
    yield* sendMessage(id, text, country(), signal);
  }
}

async function say(text) {
  replying?.abort();
  const mine = new AbortController();
  setReplying(mine);
  setStatus(t("talk.thinking"));
  const reply = new Reply();
  const again = () => say(text);
  let ended = false;
  let stopped = false;
  try {
    for await (const { event, data } of events(text, mine.signal)) {
      if (mine.signal.aborted) break;
      if (event === "notice") addNotice(data.text);
      else if (event === "safety") heed(data);
      else if (event === "waiting") setStatus(t(data.waiting ? "talk.waiting" : "talk.thinking"));
      else if (event === "text") reply.add(data.text);
      else if (event === "done") {
        ended = true;
        stopped = data.stop_reason === "cancelled";
      } else if (event === "error") {
        ended = true;
        trouble(data.code, again);
      }
    }
    stopped ||= mine.signal.aborted;
    if (!ended && !stopped) trouble("fault", again);
  } catch (error) {
    if (mine.signal.aborted) stopped = true;
    else trouble(error.code, again);
  }
  // After "New conversation" the screen is no longer this reply's.
  if (talk.hidden) return;
  reply.end(stopped);
  if (replying === mine) {
    setReplying(null);
    setStatus(null);
  }
}

function heed({ level, resources }) {
  setLevel(level, resources);
  if (level < 2) return;
  const line = resources?.lines.find(({ call }) => call);
  const where = line ? `${t("people.announce")} ${line.label}: ${line.call.number}.` : t("people.announce");
  if (level >= 3) alarmWith(where);
  else announce(where);
  follow();
}

function trouble(code, again) {
  const key = `trouble.${code}`;
  addTrouble(t(t(key) === key ? "trouble.fault" : key), again);
  setLevel(2, null);
}

function fit() {
  const over = words.value.length > MOST_CHARACTERS;
  note.classList.toggle("over", over);
  note.textContent = over ? t("talk.too-long") : t("talk.write.hint");
  words.setAttribute("aria-invalid", String(over));
  if (CSS.supports("field-sizing", "content")) return;
  words.style.height = "auto";
  words.style.height = `${words.scrollHeight + 2}px`;
}

function submit() {
  const text = words.value.trim();
  if (!text || words.value.length > MOST_CHARACTERS) {
    words.focus();
    return;
  }
  words.value = "";
  fit();
  begin();
  addYours(text);
  say(text);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
words.addEventListener("input", fit);
words.addEventListener("keydown", (event) => {
  // On a touch screen Enter makes a new line; there the button sends.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  submit();
});
stop.addEventListener("click", () => {
  replying?.abort();
  words.focus();
});
document.getElementById("new").addEventListener("click", () => {
  startAgain();
  announce(t("talk.new.done"));
  words.focus();
});
help.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openPeople();
});

// Closing, reloading and leaving end the conversation: forgotten on the server, gone from the screen, also for "back".
addEventListener("pagehide", startAgain);

await loadStrings("en", document.body.dataset.name);
composer.hidden = false;
