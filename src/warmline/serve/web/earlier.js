// The visitor's conversations: a list to go back to, rename, save and delete from.

import { exportAddress, forgetAll, forgetConversation, ownConversations, rename } from "./api.js";
import { announce } from "./log.js";
import { language, moment, saying, t } from "./strings.js";

const title = document.getElementById("earlier-title");
const list = document.getElementById("earlier-list");
const none = document.getElementById("earlier-none");
const all = document.getElementById("earlier-all");

// `opened(id)` when one is chosen, `gone(id)` when one was deleted, with null for all.
let opened = () => {};
let gone = () => {};

export function onEarlier(whenOpened, whenGone) {
  opened = whenOpened;
  gone = whenGone;
}

export async function showEarlier() {
  title.focus();
  try {
    draw(await ownConversations());
  } catch {
    list.replaceChildren(saying("li", "", "earlier.failed"));
  }
}

function draw(conversations) {
  list.replaceChildren(...conversations.map(row));
  settle();
}

function settle() {
  none.hidden = list.childElementCount > 0;
  all.hidden = !none.hidden;
}

function button(key, chosen, kind = "quiet") {
  const made = saying("button", kind, key);
  made.addEventListener("click", chosen);
  return made;
}

function save(id) {
  const link = saying("a", "quiet", "save.text");
  link.href = exportAddress(id, "text", language);
  link.download = "";
  return link;
}

function row({ id, title, used }) {
  const entry = document.createElement("li");
  entry.className = "past";
  const name = document.createElement("button");
  name.type = "button";
  name.className = "past-name";
  name.addEventListener("click", () => opened(id));
  const when = document.createElement("p");
  when.className = "past-when";
  const ways = document.createElement("p");
  ways.className = "past-ways";
  entry.append(name, when, ways);

  function show(focused) {
    name.textContent = title ?? moment(used);
    when.textContent = moment(used);
    when.hidden = !title;
    name.hidden = false;
    const renaming = button("earlier.rename", ask);
    ways.replaceChildren(renaming, save(id), button("earlier.delete", sure));
    if (focused) renaming.focus();
  }

  function ask() {
    const form = document.createElement("form");
    form.className = "past-rename";
    const label = saying("label", "unseen", "earlier.name");
    const field = document.createElement("input");
    field.id = `name-${id}`;
    field.type = "text";
    field.maxLength = 120;
    field.autocomplete = "off";
    field.spellcheck = false;
    field.value = title ?? "";
    label.htmlFor = field.id;
    const keep = saying("button", "plain", "earlier.save");
    keep.type = "submit";
    form.append(label, field, keep, button("earlier.cancel", () => show(true)));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await rename(id, field.value.trim() || null);
        title = field.value.trim() || null;
        show(true);
      } catch {
        announce(t("earlier.failed"));
      }
    });
    name.hidden = true;
    ways.replaceChildren(form);
    field.focus();
  }

  function sure() {
    confirm(ways, "earlier.sure", () => show(true), async () => {
      await forgetConversation(id);
      entry.remove();
      settle();
      gone(id);
    });
  }

  show();
  return entry;
}

// Asks once more in place of `ways`, for what can't be undone.
export function confirm(ways, question, kept, agreed) {
  const no = button("earlier.keep", kept, "plain");
  const yes = button("earlier.delete", async () => {
    try {
      await agreed();
      announce(t("earlier.deleted"));
      title.focus();
    } catch {
      announce(t("earlier.failed"));
      kept();
    }
  }, "plain plain-final");
  ways.replaceChildren(saying("span", "past-sure", question), yes, no);
  no.focus();
}

const back = [...all.parentElement.children];
all.addEventListener("click", () => {
  const ways = all.parentElement;
  const restore = () => {
    ways.replaceChildren(...back);
    settle();
  };
  confirm(ways, "earlier.all.sure", () => {
    restore();
    all.focus();
  }, async () => {
    await forgetAll();
    restore();
    draw([]);
    gone(null);
  });
});
