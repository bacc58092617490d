// People one can reach: fills the panel and decides where it stands.
//
//   first screen        in the page
//   conversation, wide  beside it
//   conversation, narrow  under the bar, when opened by hand or from level 2
//   from level 3        under the bar, first, and it stays

import { resourcesFor } from "./api.js";
import { language, say, t } from "./strings.js";

const panel = document.getElementById("people");
const title = document.getElementById("people-title");
const lead = document.getElementById("people-lead");
const body = document.getElementById("people-body");
const hide = document.getElementById("people-hide");
const choice = document.getElementById("country");
const beside = document.getElementById("beside");
const above = document.getElementById("urgent");
const template = document.getElementById("line");
const wide = matchMedia("(min-width: 64rem)");

let talking = false;
let opened = false;
let urgent = false;
let level = 0;

export const country = () => choice.value || null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function way(href, text, kind = "") {
  const link = element("a", `way ${kind}`.trim(), text);
  link.href = href;
  if (kind === "way-site") {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.append(element("span", "unseen", ` (${t("people.newtab")})`));
  }
  return link;
}

function show(resources) {
  const emergency = element("p", "emergency", "");
  if (resources.emergency) {
    const { number, tel } = resources.emergency;
    emergency.append(
      element("span", "emergency-when", t("people.emergency")),
      " ",
      way(tel, t("people.call", { number }), "way-urgent"),
    );
  } else {
    emergency.append(
      element("span", "emergency-when", t("people.emergency.local")),
      ` ${t("people.emergency.local.112")}`,
    );
  }
  const lines = element("ul", "lines", "");
  for (const line of resources.lines) {
    const item = template.content.cloneNode(true);
    item.querySelector(".line-name").textContent = line.label;
    const hours = item.querySelector(".line-hours");
    if (line.hours) hours.textContent = line.hours;
    else hours.remove();
    const ways = item.querySelector(".line-ways");
    if (line.call) ways.append(way(line.call.href, t("people.call", line.call), "way-call"));
    if (line.text) ways.append(way(line.text.href, t("people.text", line.text)));
    if (line.chat) ways.append(way(line.chat.url, t("people.chat", line.chat), "way-site"));
    if (line.web) ways.append(way(line.web.url, line.web.site, "way-site"));
    lines.append(item);
  }
  body.replaceChildren(emergency);
  if (resources.lines.length) body.append(lines);
  if (!resources.lines.length && resources.country) body.append(element("p", "people-note", t("people.unlisted")));
  const note = element("p", "people-note", "");
  note.append(element("span", "", t("people.elsewhere")), " ");
  for (const { url, site } of resources.elsewhere) note.append(way(url, site, "way-site"));
  body.append(note);
}

function place() {
  const up = talking && (urgent || (opened && !wide.matches));
  const home = up ? above : beside;
  if (panel.parentElement !== home) {
    home.append(panel);
    // Under the bar every line of height counts: numbers come first there, unless the country is what is missing.
    if (up && choice.value) panel.append(choice.form);
    else body.before(choice.form);
  }
  panel.hidden = talking && !up && !wide.matches;
  hide.hidden = !up || level >= 3;
  lead.hidden = !(urgent && up);
  say(title, urgent && up ? "people.title.urgent" : "people.title");
  document.body.toggleAttribute("data-urgent", urgent && up);
  panel.toggleAttribute("data-called-for", level >= 2);
}

// What the safety screen found decides what stands on the screen in the same turn.
export function setLevel(now, resources) {
  level = now;
  if (resources) show(resources);
  if (now >= 3) urgent = true;
  if (now >= 2) opened = true;
  place();
  if (now >= 3) panel.scrollIntoView({ block: "nearest" });
}

export function setTalking(now) {
  talking = now;
  if (!now) {
    opened = urgent = false;
    level = 0;
  }
  place();
}

export function openPeople(focus = true) {
  opened = true;
  place();
  if (!focus) return;
  title.focus();
  if (panel.parentElement === beside) panel.scrollIntoView({ block: "nearest" });
}

hide.addEventListener("click", () => {
  opened = urgent = false;
  place();
  document.getElementById("words").focus();
});

async function load() {
  const asked = choice.value;
  try {
    const resources = await resourcesFor(asked);
    if (asked === choice.value) show(resources);
  } catch {
    const link = element("a", "", t("people.failed"));
    link.href = document.getElementById("help").href;
    body.replaceChildren(link);
  }
}

choice.addEventListener("change", load);

// The panel in another language, the countries in the order of its alphabet.
export function retellPeople() {
  const [none, ...countries] = choice.options;
  const chosen = choice.value;
  countries.sort((a, b) => a.text.localeCompare(b.text, language));
  choice.replaceChildren(none, ...countries);
  choice.value = chosen;
  return load();
}

export const onCountry = (changed) => choice.addEventListener("change", changed);

wide.addEventListener("change", place);
