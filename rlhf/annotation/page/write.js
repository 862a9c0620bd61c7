// Writing: a prompt that two models answer, a demonstration, or an attempt of the red team. What is typed stays in the
// browser until the server says that it is kept; its key makes one row of it, however often it is sent.
"use strict";

const MODE = document.body.dataset.mode;
let after = null; // number of the pair or entry that the dialogue goes on from
let waiting = null; // an attempt that waits for its verdict
let begun = 0;
let sending = false;
const drafts = { "text": $("text"), "answer": $("answer"), "better": $("better") };

function seconds() {
  return (performance.now() - begun) / 1000;
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function place(name) {
  return `draft ${MODE} ${annotator} ${name}`;
}

function keepDrafts() {
  for (const [name, field] of Object.entries(drafts)) if (field) localStorage.setItem(place(name), field.value);
}

function clear(...names) {
  for (const name of names) {
    if (drafts[name]) drafts[name].value = "";
    localStorage.removeItem(place(name));
  }
  localStorage.removeItem(place("key"));
}

function keyOfDraft() {
  const key = localStorage.getItem(place("key")) || newKey();
  localStorage.setItem(place("key"), key);
  return key;
}

function tell(mine) {
  const found = mine.violations === undefined ? "" : `, ${mine.violations} violations`;
  $("mine").textContent = `${mine.written} by you${found}`;
  $("all").textContent = "";
  $("progress").hidden = true;
}

async function compose() {
  const query = new URLSearchParams({ annotator });
  if (after !== null) query.set("after", after);
  const state = await ask(`api/dialogue?${query}`);
  if (state.refused) {
    if (after === null) return say(state.refused, true);
    after = null;
    return compose();
  }
  for (const [name, field] of Object.entries(drafts)) if (field) field.value = localStorage.getItem(place(name)) || "";
  tell(state.mine);
  showAttempt(state);
  begun = performance.now();
}

function showAttempt(state) {
  waiting = state.attempt;
  $("so-far").replaceChildren(...turns(state.messages));
  $("compose").hidden = waiting !== null;
  $("write-title").classList.toggle("unseen", after !== null || waiting !== null);
  view("write");
  window.scrollTo(0, 0);
  if (waiting === null) { $("text").focus(); return; }
  $("attempt").reset();
  $("better").value = localStorage.getItem(place("better")) || "";
  $("better-part").hidden = true;
  $("attempt-answer").innerHTML = waiting.answer; // escaped by the server
  $("attempt").hidden = false;
  $("attempt-answer").focus();
}

async function once(work) {
  if (sending) return;
  sending = true;
  $("send").disabled = true;
  try { await work(); } finally { sending = false; $("send").disabled = false; }
}

async function post() {
  const body = { annotator, after, key: keyOfDraft(), text: $("text").value, seconds: seconds() };
  if (MODE === "red-team") {
    body.category = $("category").value;
    body.style = $("style").value;
  } else body.domain = $("write-domain").value;
  if (MODE === "demonstrate") body.answer = $("answer").value;
  say(MODE === "demonstrate" ? "" : "The model answers …");
  const answer = await ask(`api/${{ "write": "ask", "demonstrate": "demonstrate", "red-team": "attempt" }[MODE]}`, body);
  if (answer.refused) { localStorage.removeItem(place("key")); return say(answer.refused, true); }
  say("");
  clear("text", "answer");
  if (MODE === "write") return show(await fetchNext());
  if (MODE === "red-team") return showAttempt(answer);
  after = answer.entry;
  await compose();
  say("Kept. Go on with the dialogue, or begin a new one.");
}

async function verdict() {
  const violation = new FormData($("attempt")).get("violation") === "true";
  const body = { annotator, entry: waiting.entry, violation, seconds: seconds() };
  if (violation) body.better = $("better").value;
  const answer = await ask("api/verdict", body);
  if (answer.refused) return say(answer.refused, true);
  clear("better");
  after = answer.entry;
  $("attempt").hidden = true;
  await compose();
  say("Kept. Go on with the dialogue, or begin a new one.");
}

whenNothing = compose;
judged = (item) => { after = item; };
left = () => { after = null; waiting = null; };
$("compose").addEventListener("submit", (event) => { event.preventDefault(); once(post); });
$("write").addEventListener("input", () => { localStorage.removeItem(place("key")); keepDrafts(); });
$("write").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  (waiting === null ? $("compose") : $("attempt")).requestSubmit();
});
$("new").addEventListener("click", () => { after = null; compose(); });
if ($("attempt")) {
  $("attempt").addEventListener("submit", (event) => { event.preventDefault(); once(verdict); });
  $("attempt").addEventListener("change", (event) => {
    if (event.target.name === "violation") $("better-part").hidden = event.target.value !== "true";
  });
}
