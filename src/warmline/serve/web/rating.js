// What a visitor thinks of a reply: three quiet choices under it, folded away until asked for.

import { judge } from "./api.js";
import { say, saying } from "./strings.js";

const VERDICTS = ["helpful", "unhelpful", "harmful"];

export function rating(conversation, place, verdict) {
  const box = document.createElement("details");
  box.className = "rate";
  const ways = document.createElement("p");
  ways.className = "rate-ways";
  const result = document.createElement("p");
  result.className = "note";
  result.setAttribute("role", "status");
  const buttons = VERDICTS.map((each) => {
    const button = saying("button", "plain", `rate.${each}`);
    button.addEventListener("click", () => choose(each));
    ways.append(button);
    return button;
  });

  function show() {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(VERDICTS[at] === verdict)));
  }

  async function choose(each) {
    const wanted = each === verdict ? null : each;
    try {
      await judge(conversation, place, wanted);
      verdict = wanted;
      say(result, wanted ? "rate.thanks" : "rate.back");
    } catch {
      say(result, "rate.failed");
    }
    show();
  }

  box.append(saying("summary", "quiet", "rate.title"), saying("p", "note", "rate.note"), ways, result);
  show();
  return box;
}
