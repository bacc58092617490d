// What the page says, in one file for each language. An element says which of its words are whose by `data-t`.

let strings = {};
const { name, hours, days } = document.body.dataset;

export let language = document.documentElement.lang;

export async function loadStrings(wanted) {
  const answer = await fetch(`/static/strings/${wanted}.json`);
  if (!answer.ok) throw new Error("no strings");
  strings = await answer.json();
  language = wanted;
  document.documentElement.lang = wanted;
}

export function t(key, values = {}) {
  const all = { name, hours, days, ...values };
  return (strings[key] ?? key).replace(/\{(\w+)\}/g, (whole, slot) => all[slot] ?? whole);
}

// An element that says `key`, and goes on saying it when the language changes.
export function saying(tag, className, key) {
  const made = document.createElement(tag);
  if (tag === "button") made.type = "button";
  if (className) made.className = className;
  say(made, key);
  return made;
}

export function say(element, key) {
  element.dataset.t = key;
  element.textContent = t(key);
}

export function translate() {
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-title]")) element.title = t(element.dataset.tTitle);
}

export function moment(iso) {
  const form = { weekday: "long", day: "numeric", month: "long", hour: "2-digit", minute: "2-digit" };
  return new Intl.DateTimeFormat(language === "en" ? "en-GB" : language, form).format(new Date(iso));
}
