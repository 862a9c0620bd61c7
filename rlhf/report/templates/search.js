// The answers of a run: searched, filtered, two versions side by side with what differs marked. All of it lies in the
// page; texts go in as text, never as markup. What is looked at stands in the address, so that a reload keeps it.
"use strict";
(() => {
const A_PAGE = 10;
const LONG = 250;
const MOST_CELLS = 4e6; // of the table that compares two texts
const ALONE = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}"; // written without spaces
const WORDS = new RegExp(`(?:(?:(?![${ALONE}])[\\p{L}\\p{M}\\p{N}_'’-])+|\\S)\\s*|\\s+`, "gu");
const $ = (id) => document.getElementById(id);
const form = $("search");
const controls = ["q", "left", "right", "kind", "mark", "order"];
let begun = false;
let data = null;
let texts = []; // of each prompt, all that is searched
let found = [];
let shown = 0;

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function words(text) {
  return text.match(WORDS) || [];
}

// Longest common subsequence: [text, differs] runs of both; null where the texts are too long for it.
function compare(before, after) {
  const a = words(before), b = words(after), key = (word) => word.trim();
  let start = 0, end = 0;
  while (start < a.length && start < b.length && key(a[start]) === key(b[start])) start++;
  while (end < a.length - start && end < b.length - start && key(a[a.length - 1 - end]) === key(b[b.length - 1 - end])) end++;
  const n = a.length - start - end, m = b.length - start - end, width = m + 1;
  if (n * m > MOST_CELLS) return null;
  const best = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      best[i * width + j] = key(a[start + i]) === key(b[start + j]) ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const left = new Uint8Array(a.length), right = new Uint8Array(b.length);
  for (let i = 0, j = 0; i < n || j < m;) {
    if (i < n && j < m && key(a[start + i]) === key(b[start + j])) { i++; j++; }
    else if (j >= m || (i < n && best[(i + 1) * width + j] >= best[i * width + j + 1])) left[start + i++] = 1;
    else right[start + j++] = 1;
  }
  return [runs(a, left), runs(b, right)];
}

function runs(all, differs) {
  const found = [];
  all.forEach((word, i) => {
    const last = found[found.length - 1];
    if (last && last[1] === differs[i]) last[0] += word; else found.push([word, differs[i]]);
  });
  return found;
}

function number(value) {
  return value.toFixed(2).replace("-", "−");
}

function answerNode(version, answer, parts, tag) {
  const node = make("div");
  node.append(make("h3", "", data.versions[version]));
  const text = make("p", "answer");
  if (answer[0].length > LONG) text.tabIndex = 0; // it may have to be scrolled
  if (!answer[0]) text.append("(an empty answer)");
  else if (!parts) text.append(answer[0]);
  else for (const [part, differs] of parts) {
    const kept = part.trimEnd();
    text.append(differs && kept ? make(tag, "", kept) : kept, part.slice(kept.length));
  }
  node.append(text);
  const first = form.dataset.first, beside = answer[5]; // by the same models: other versions' rewards do not compare
  const said = data.scores.map((name, i) => [name, answer[1][i]])
    .filter(([name, value]) => value !== null && (name !== "reward" || beside !== null))
    .map(([name, value]) => name === "tokens" ? `${value} tokens`
      : `${name} ${number(value)}${name === "reward" ? ` (${first} ${number(beside)})` : ""}`);
  if (answer[3] !== null) said.push(`${answer[4]} ${answer[3] > 0 ? "+" : ""}${number(answer[3])} over ${first}`);
  const scores = make("p", "scores", said.join(" · "));
  data.marks.forEach((mark, i) => { if (answer[2] & (1 << i)) scores.append(" · ", make("em", "", mark)); });
  node.append(scores);
  return node;
}

function promptNode(at) {
  const [id, kind, history, question] = data.prompts[at];
  const node = make("article", "sample");
  node.tabIndex = -1;
  node.append(make("p", "place", `${kind} · ${id}`));
  if (history.length) {
    const earlier = make("details", "history");
    earlier.append(make("summary", "", "Earlier turns"));
    for (const [role, content] of history) {
      const turn = make("p");
      turn.append(make("strong", "", `${role}:`), ` ${content}`);
      earlier.append(turn);
    }
    node.append(earlier);
  }
  node.append(make("p", "ask", question));
  const left = +$("left").value, right = +$("right").value, both = make("div", "answers two");
  const before = data.answers[left][at], after = data.answers[right][at];
  const parts = left !== right && before && after ? compare(before[0], after[0]) : [null, null];
  if (before) both.append(answerNode(left, before, parts && parts[0], "del"));
  if (after && left !== right) both.append(answerNode(right, after, parts && parts[1], "ins"));
  node.append(both);
  if (parts === null) node.append(make("p", "note", "These texts are too long to be compared word by word."));
  return node;
}

// Unpacks the answers when they are first needed.
async function begin() {
  if (begun) return;
  begun = true;
  const letters = atob($("answers-data").textContent), packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  $("answers-data").remove();
  data = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  texts = new Array(data.prompts.length);
  show();
}

function searched(at) {
  if (texts[at] === undefined) {
    const [id, , history, question] = data.prompts[at];
    const said = [id, question, ...history.map((turn) => turn[1]), ...data.answers.map((own) => own[at] ? own[at][0] : "")];
    texts[at] = said.join("\n").toLowerCase();
  }
  return texts[at];
}

function show() {
  if (!data) { begin(); return; }
  const query = $("q").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = $("kind").value, mark = $("mark").value, order = $("order").value;
  const left = data.answers[+$("left").value], right = data.answers[+$("right").value];
  const wanted = mark === "" ? 0 : mark === "any" ? -1 : 1 << +mark;
  found = [];
  for (let at = 0; at < data.prompts.length; at++) {
    if (kind !== "" && data.prompts[at][1] !== kind) continue;
    if (wanted && !((left[at] && left[at][2] & wanted) || (right[at] && right[at][2] & wanted))) continue;
    if (query.length && !query.every((word) => searched(at).includes(word))) continue;
    found.push(at);
  }
  if (order !== "") {
    const sign = order === "rise" ? -1 : 1;
    const change = (at) => right[at] && right[at][3] !== null ? sign * right[at][3] : Infinity;
    found.sort((a, b) => change(a) - change(b) || a - b);
  }
  shown = 0;
  $("found").replaceChildren();
  more();
  keep();
}

function more() {
  const next = found.slice(shown, shown + A_PAGE);
  $("found").append(...next.map(promptNode));
  shown += next.length;
  const prompts = found.length === 1 ? "1 prompt" : `${found.length} prompts`;
  $("count").textContent = found.length ? `${prompts} found, ${shown} shown` : "No prompt has all of this.";
  $("more").hidden = shown >= found.length;
}

function keep() {
  const state = new URLSearchParams();
  for (const name of controls) {
    const control = $(name);
    const plain = control.tagName === "SELECT" ? [...control.options].find((o) => o.defaultSelected) || control.options[0] : null;
    if (control.value !== (plain ? plain.value : "")) state.set(name, control.value);
  }
  const hash = state.size ? `#answers/${state}` : location.hash.startsWith("#answers/") ? "#answers" : location.hash;
  try { history.replaceState(null, "", hash || location.pathname + location.search); } catch (error) { /* a page that may not */ }
}

function restore() {
  if (!location.hash.startsWith("#answers/")) return;
  const state = new URLSearchParams(location.hash.slice("#answers/".length));
  for (const name of controls) if (state.has(name)) $(name).value = state.get(name);
  for (const name of controls) if ($(name).selectedIndex === -1) $(name).selectedIndex = 0;
  begin().then(() => $("answers").scrollIntoView());
}

let waiting = 0;
form.hidden = false;
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("found").firstChild) $("found").firstChild.focus();
});
form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 120); });
$("more").addEventListener("click", () => {
  const first = shown;
  more();
  if ($("found").children[first]) $("found").children[first].focus();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") {
      event.preventDefault(); // a browser would empty the search
      event.target.blur();
    }
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    $("q").focus();
  } else if (event.key === "j" || event.key === "k") {
    const all = [...$("found").children], at = all.indexOf(document.activeElement);
    const next = all[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
    if (next) next.focus();
    else if (event.key === "j" && shown < found.length) $("more").click();
  }
});
restore();
new IntersectionObserver((seen, observer) => {
  if (!seen.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  begin();
}, { rootMargin: "600px" }).observe(form);
})();
