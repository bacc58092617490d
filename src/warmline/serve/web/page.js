// The page: from the first screen into a conversation and out of it. Keeps nothing of it in the browser.

import {
  Refused, consent, exportAddress, forgetConversation, newKey, openConversation, readConversation, sendMessage,
} from "./api.js";
import { confirm, onEarlier, showEarlier } from "./earlier.js";
import {
  addNotice, addReply, addTrouble, addYours, alarmWith, announce, choice, clearLog, dropAfter, follow, offer, Reply,
  setStatus, withdrawOffers,
} from "./log.js";
import { country, onCountry, openPeople, retellPeople, setLevel, setTalking } from "./people.js";
import { rating } from "./rating.js";
import { carry, onLanguage } from "./settings.js";
import { language, loadStrings, say as label, t } from "./strings.js";

const MOST_CHARACTERS = 8000;

const get = (id) => document.getElementById(id);
const [first, talk, earlier, composer] = ["first", "talk", "earlier", "composer"].map(get);
const [about, aboutOpen, facts, settings, firstBar] = ["about", "about-open", "facts", "settings", "first-bar"].map(get);
const [words, note, send, stop, editing, help] = ["words", "composer-note", "send", "stop", "editing", "help"].map(get);
const [own, saveText, saveJson, deleteThis, training, goBack] = ["this", "save-text", "save-json", "delete-this", "training", "go-back"].map(get);
const touch = matchMedia("(hover: none)");
const { days, vetted } = document.body.dataset;

let id = null;
let replying = null;
let changing = null; // the message that is being edited: {entry, place, text}
const opened = new Set(); // conversations of this page: in memory they end with it

// ------------------------------------------------------------------ what is on the screen

function show(view) {
  first.hidden = view !== first;
  talk.hidden = view !== talk;
  earlier.hidden = view !== earlier;
  composer.hidden = view === earlier;
  (view === first ? firstBar : about).prepend(settings);
  (view === first ? first : about).append(facts);
  setTalking(view !== first);
}

function clear() {
  replying?.abort();
  setReplying(null);
  setId(null);
  stopEditing();
  clearLog();
  setTalking(false);
  openAbout(false);
}

function openAbout(now) {
  about.hidden = !now;
  aboutOpen.setAttribute("aria-expanded", String(now));
}

function startAgain() {
  clear();
  words.value = "";
  fit();
  show(first);
  goBack.hidden = opened.size === 0 && !days;
  scrollTo({ top: 0 });
}

function setId(now) {
  id = now;
  own.hidden = !now;
  if (training) training.checked = false;
  if (now) opened.add(now);
  tellSaving();
}

function tellSaving() {
  if (!id) return;
  saveText.href = exportAddress(id, "text", language);
  saveJson.href = exportAddress(id, "json", language);
}

function setReplying(now) {
  replying = now;
  const hadFocus = [send, stop].includes(document.activeElement);
  send.hidden = Boolean(now);
  stop.hidden = !now;
  if (hadFocus) words.focus();
}

// ------------------------------------------------------------------ one turn

async function* events(text, place, key, signal) {
  const message = () => ({ text, country: country(), language, ...(place === null ? {} : { place }) });
  if (!id) setId(await openConversation(country()));
  try {
    yield* sendMessage(id, message(), key, signal);
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
    addNotice(t("trouble.gone"));
    place = null;
    setId(await openConversation(country()));
    yield* sendMessage(id, message(), key, signal);
  }
}

// `place`: where the message stands already, to be said anew there; null for a new one.
async function say(text, yours, place = null, key = newKey()) {
  replying?.abort();
  withdrawOffers();
  const mine = new AbortController();
  setReplying(mine);
  setStatus(t("talk.thinking"));
  const reply = new Reply();
  const turn = { text, yours, place, vetted: false, verdict: null };
  const again = () => say(text, yours, turn.place, turn.place === null ? key : newKey());
  let ended = false;
  let stopped = false;
  try {
    for await (const { event, data } of events(text, place, key, mine.signal)) {
      if (mine.signal.aborted) break;
      if (event === "place") turn.place = data;
      else if (event === "notice") addNotice(data.text, foreign());
      else if (event === "safety") {
        turn.vetted = data.action === "vetted";
        if (turn.vetted) reply.lang = foreign();
        heed(data);
      } else if (event === "waiting") setStatus(data.waiting ? inLine(data) : t("talk.thinking"));
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
    else {
      // Taken back by the server, or the conversation went on elsewhere.
      if ([409, 429, 503].includes(error.status)) turn.place = null;
      for (const notice of error.told?.notices ?? []) addNotice(notice, foreign());
      trouble(error.code, again);
      if (error.told?.safety) heed(error.told.safety);
    }
  }
  // After "New" or going back to another one, the screen is no longer this reply's.
  if (replying !== mine) return;
  finish(turn, reply.end(stopped));
  setReplying(null);
  setStatus(null);
}

function finish(turn, entry) {
  if (turn.place === null) return;
  offer(turn.yours, choice("talk.edit", () => edit(turn)));
  if (!entry) return;
  const retry = choice("talk.retry", () => {
    dropAfter(turn.yours);
    words.focus();
    say(turn.text, turn.yours, turn.place);
  });
  // What was written in advance is the same again.
  if (!turn.vetted) offer(entry, retry);
  if (entry.querySelector(".said-text")) offer(entry, rating(id, turn.place + 1, turn.verdict));
}

function inLine({ place, seconds }) {
  const where = t(place > 1 ? "talk.waiting.place" : "talk.waiting", { place });
  return seconds ? `${where} ${t("talk.waiting.seconds", { seconds })}` : where;
}

// The language of what exists in English only, as long as that is not the page's.
const foreign = () => (vetted.split(" ").includes(language) ? null : "en");

function heed({ level, action, resources }) {
  setLevel(level, resources);
  if (action === "vetted" && foreign()) addNotice(t("talk.english"));
  if (level < 2) return;
  const line = resources?.lines.find(({ call }) => call);
  const where = line ? `${t("people.announce")} ${line.label}: ${line.call.number}.` : t("people.announce");
  if (level >= 3) alarmWith(where);
  else announce(where);
  follow();
}

function trouble(code, again) {
  const key = `trouble.${code}`;
  addTrouble(t(key) === key ? "trouble.fault" : key, again);
  openPeople(false);
}

// ------------------------------------------------------------------ writing

function fit() {
  const over = words.value.length > MOST_CHARACTERS;
  note.classList.toggle("over", over);
  label(note, over ? "talk.too-long" : "talk.write.hint");
  words.setAttribute("aria-invalid", String(over));
  if (CSS.supports("field-sizing", "content")) return;
  words.style.height = "auto";
  words.style.height = `${words.scrollHeight + 2}px`;
}

function edit(turn) {
  changing = turn;
  editing.hidden = false;
  words.value = turn.text;
  fit();
  words.focus();
}

function stopEditing() {
  changing = null;
  editing.hidden = true;
}

function submit() {
  const text = words.value.trim();
  if (!text || words.value.length > MOST_CHARACTERS) {
    words.focus();
    return;
  }
  const turn = changing;
  stopEditing();
  words.value = "";
  fit();
  if (talk.hidden) show(talk);
  if (turn) dropAfter(turn.yours, true);
  say(text, addYours(text), turn?.place ?? null);
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
get("edit-cancel").addEventListener("click", () => {
  stopEditing();
  words.value = "";
  fit();
  words.focus();
});

// ------------------------------------------------------------------ conversations

async function goTo(chosen) {
  const { messages, level, resources, training: allowed } = await readConversation(chosen);
  clear();
  setId(chosen);
  if (training) training.checked = allowed;
  show(talk);
  let yours = null;
  let last = null;
  messages.forEach(({ role, text, verdict }, place) => {
    if (role === "user") {
      yours = addYours(text);
      last = { text, yours, place, vetted: level >= 3 };
    } else {
      const entry = addReply(text);
      if (place < messages.length - 1) offer(entry, rating(chosen, place, verdict));
      else finish({ ...last, verdict }, entry);
    }
  });
  if (last && messages.at(-1).role === "user") finish(last, null);
  setLevel(level, resources);
  follow();
  words.focus();
}

function leaveList() {
  show(id ? talk : first);
  words.focus();
}

onEarlier(
  (chosen) => goTo(chosen).catch(showEarlier),
  (gone) => {
    if (gone) opened.delete(gone);
    else opened.clear();
    if (!gone || gone === id) clear();
  },
);
for (const button of [goBack, get("to-earlier")]) {
  button.addEventListener("click", () => {
    show(earlier);
    showEarlier();
  });
}
get("earlier-back").addEventListener("click", leaveList);
get("new").addEventListener("click", () => {
  startAgain();
  announce(t("talk.new.done"));
  words.focus();
});

deleteThis.addEventListener("click", () => {
  const ways = deleteThis.parentElement;
  const before = [...ways.children];
  const restore = () => ways.replaceChildren(...before);
  confirm(ways, "earlier.sure", () => {
    restore();
    deleteThis.focus();
  }, async () => {
    await forgetConversation(id);
    restore();
    opened.delete(id);
    startAgain();
    words.focus();
  });
});

training?.addEventListener("change", async () => {
  try {
    await consent(id, training.checked);
    announce(t(training.checked ? "consent.on" : "consent.off"));
  } catch {
    training.checked = !training.checked;
  }
});

// ------------------------------------------------------------------ always

aboutOpen.addEventListener("click", () => openAbout(about.hidden));

help.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openPeople();
});

onLanguage(() => {
  tellSaving();
  if (!earlier.hidden) showEarlier();
  fit();
  retellPeople();
});
onCountry(() => carry());

// Closing, reloading and leaving clear the screen, also for "back". What is held in memory only ends with the page.
addEventListener("pagehide", () => {
  if (!days) for (const each of opened) forgetConversation(each).catch(() => {});
  opened.clear();
  startAgain();
});

await loadStrings(language);
composer.hidden = false;
carry();
