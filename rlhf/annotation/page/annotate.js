// One pair at a time. A judgement counts when the server says that it is kept; until then it is sent again and again.
"use strict";

const $ = (id) => document.getElementById(id);
const WAIT = 1000; // milliseconds before a request that got no answer is sent again
let annotator = "";
let pair = null; // what is shown
let ahead = null; // promise of the pair after it
let shownAt = 0;
let keys = 0; // choices of its scale
let newest = 0; // number of this annotator's newest judgement
let busy = false;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  for (;;) {
    try {
      const answer = await fetch(path, options);
      const content = await answer.json();
      if (answer.ok) return content;
      if (answer.status < 500) return { refused: content.error || "the server refuses this", status: answer.status };
    } catch (error) { /* no server, or half an answer */ }
    say("The server does not answer; nothing is lost, trying again …", true);
    await new Promise((later) => setTimeout(later, WAIT));
  }
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function view(id) {
  for (const name of ["enter", "done", "pair", "write"]) if ($(name)) $(name).hidden = name !== id;
}

function count(progress) {
  newest = progress.newest;
  $("mine").textContent = `${progress.mine} by you,`;
  $("all").textContent = `${progress.kept} of ${progress.wanted} in all`;
  $("progress").max = Math.max(progress.wanted, 1);
  $("progress").value = progress.kept;
}

function fetchNext(after) {
  const query = new URLSearchParams({ annotator });
  if (after !== undefined) query.set("after", after);
  return ask(`api/next?${query}`);
}

// write.js puts the writing in this place.
let whenNothing = () => {
  view("done");
  $("done").querySelector("h1").focus();
};

function turns(messages) {
  const names = { system: "Instructions to the assistant", user: "Person", assistant: "Assistant" };
  return messages.map((message) => {
    const turn = document.createElement("div");
    const body = document.createElement("div");
    const name = document.createElement("b");
    turn.className = `message ${message.role}`;
    name.textContent = names[message.role];
    body.dir = "auto";
    body.innerHTML = message.html; // escaped by the server
    turn.append(name, body);
    return turn;
  });
}

function show(state, was) {
  $("judge").reset();
  pair = state.pair;
  if (state.progress) count(state.progress);
  if (pair === null) {
    whenNothing();
    return;
  }
  $("domain").textContent = pair.question;
  useScale(pair.scale);
  $("dialogue").replaceChildren(...turns(pair.messages));
  $("left").innerHTML = pair.left;
  $("right").innerHTML = pair.right;
  $("dialogue").scrollTop = $("dialogue").scrollHeight;
  for (const side of ["left", "right"]) $(side).scrollTop = 0;
  document.querySelector(".safety").classList.toggle("optional", pair.domain !== "safety");
  if (was) fill(was);
  mark();
  view("pair");
  window.scrollTo(0, 0);
  $("title").focus({ preventScroll: true });
  shownAt = performance.now();
  document.body.dataset.item = pair.item;
  ahead = fetchNext(pair.item);
}

// The fieldsets of the other scales are out of sight, of the tab order, of the keys and of the form's data.
function useScale(name) {
  for (const set of document.querySelectorAll("fieldset[data-scale]")) {
    set.hidden = set.disabled = set.dataset.scale !== name;
    if (set.hidden) continue;
    keys = set.querySelectorAll("input").length;
    for (const part of document.querySelectorAll(".safety, .safety fieldset")) {
      part.hidden = part.disabled = set.dataset.safety !== "true";
    }
  }
}

function fill(was) {
  if (was.choice) check(`choice`, was.strength ? `${was.choice} ${was.strength}` : was.choice);
  for (const side of ["left", "right"]) {
    const label = was[`${side}_safe`];
    if (label === true || label === false) check(`${side}_safe`, String(label));
  }
}

function check(name, value) {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]:enabled`);
  if (input) input.checked = true;
}

function mark() {
  const choice = new FormData($("judge")).get("choice") || "";
  for (const side of ["left", "right"]) $(`${side}-answer`).classList.toggle("chosen", choice.startsWith(side));
}

function judgement() {
  const given = new FormData($("judge"));
  const choice = given.get("choice");
  if (!choice) return say(`Choose first: keys 1 to ${keys}, from left to right.`, true);
  const [side, strength = null] = choice.split(" ");
  if ($("safe").hidden) return { choice: side, strength };
  const safe = {};
  for (const name of ["left_safe", "right_safe"]) safe[name] = given.get(name) === null ? null : given.get(name) === "true";
  if (pair.domain === "safety" && Object.values(safe).includes(null)) {
    return say("Say of both answers whether they are safe: q or w for the left one, o or p for the right one.", true);
  }
  if (safe[`${side}_safe`] === false && safe[`${side === "left" ? "right" : "left"}_safe`] === true) {
    return say("An unsafe answer cannot be chosen over a safe one: choose the safe one, or skip the pair.", true);
  }
  return { choice: side, strength, ...safe };
}

let judged = () => {}; // write.js goes on from there

async function send(given, said) {
  if (busy || pair === null) return;
  busy = true;
  $("save").disabled = true;
  const seconds = (performance.now() - shownAt) / 1000;
  const answer = await ask("api/judge", { annotator, item: pair.item, seconds, ...given });
  if (answer.refused && answer.status !== 409) {
    say(answer.refused, true);
  } else {
    if (!answer.refused && !given.skipped) judged(pair.item);
    let next = await (answer.refused ? fetchNext(pair.item) : ahead);
    if (next.refused) next = { pair: null };
    show({ pair: next.pair, progress: answer.progress || next.progress });
    say(answer.refused ? "That pair was judged meanwhile, by others or by you in another window." : said);
  }
  $("save").disabled = false;
  busy = false;
}

function save() {
  const given = judgement();
  if (given) send(given, "Saved.");
}

async function undo() {
  if (busy) return;
  if (!newest) return say("There is nothing to undo.");
  busy = true;
  const answer = await ask("api/undo", { annotator, judgement: newest });
  if (answer.refused || answer.pair === null) say(answer.refused || "There is nothing to undo.", true);
  else {
    show(answer, answer.was);
    say("Taken back; judge it again.");
  }
  busy = false;
}

function openReasons() {
  if (pair !== null && !busy) $("reasons").showModal();
}

function skip(reason) {
  if (!reason.trim()) return;
  $("reasons").close();
  $("other").value = "";
  send({ skipped: reason }, "Skipped.");
}

async function enter(name) {
  annotator = name.trim();
  localStorage.setItem("annotator", annotator);
  $("name").textContent = annotator;
  $("head").hidden = false;
  const state = await fetchNext();
  if (state.refused) {
    leave();
    say(state.refused, true);
  } else {
    say("");
    show(state);
  }
}

let left = () => {}; // write.js forgets what another person wrote

function leave() {
  annotator = "";
  pair = null;
  left();
  localStorage.removeItem("annotator");
  $("name").textContent = "";
  $("head").hidden = true;
  view("enter");
  $("annotator").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const at = event.target;
  if (at.matches("input:not([type=radio]), textarea, select")) {
    if (event.key === "Enter" && at.id === "other") { event.preventDefault(); skip(at.value); }
    return;
  }
  if ($("reasons").open) {
    const reason = document.querySelectorAll(".reason")[Number(event.key) - 1];
    if (reason) { event.preventDefault(); skip(reason.dataset.reason); }
    return;
  }
  const key = event.key.toLowerCase();
  if (key === "u" && !$("enter").checkVisibility()) { event.preventDefault(); undo(); return; }
  if (key === "g") { event.preventDefault(); $("guidelines").open = !$("guidelines").open; return; }
  if (pair === null) return;
  const input = document.querySelector(`input[data-key="${CSS.escape(key)}"]:enabled`);
  if (input) { event.preventDefault(); input.checked = true; say(""); mark(); }
  else if (key === "s") { event.preventDefault(); openReasons(); }
  else if (key === "enter" && !at.closest("button, summary, a")) { event.preventDefault(); save(); }
});
$("judge").addEventListener("submit", (event) => { event.preventDefault(); save(); });
$("judge").addEventListener("change", () => { say(""); mark(); });
$("enter").addEventListener("submit", (event) => { event.preventDefault(); enter($("annotator").value); });
$("undo").addEventListener("click", undo);
$("undo-done").addEventListener("click", undo);
$("skip").addEventListener("click", openReasons);
$("stay").addEventListener("click", () => $("reasons").close());
$("other-skip").addEventListener("click", () => skip($("other").value));
for (const button of document.querySelectorAll(".reason")) button.addEventListener("click", () => skip(button.dataset.reason));
$("again").addEventListener("click", () => enter(annotator));
$("leave").addEventListener("click", leave);
$("guidelines").open = matchMedia("(min-width: 62rem)").matches;
const asked = new URLSearchParams(location.search).get("annotator") || localStorage.getItem("annotator");
addEventListener("DOMContentLoaded", () => { if (asked) enter(asked); else leave(); });
